"""Find sentences that compare a class with another one, such as "Unlike a dog, the cat ...".

A text encoder represents the other class of such a sentence, and hardly the word "unlike". A test checks that the
descriptions of this project have few of them. The patterns also match harmless sentences: most matches in the
descriptions give a size ("no bigger than a biscuit") or a location ("where a road passes").
"""

import re
from collections.abc import Mapping, Sequence

from trainers.hegraph.features.prompts.collect import MASK, Table, name_pattern

OTHER = "OTHERCLASS"  # replaces the names of other classes of the data set; no sentence has this word

# Words after "than" in a comparison with another part of the same thing, or with a measure
_OWN_PART_OR_MEASURE = (
    r"(?:(?:it|its|they|their|one|two|three|four|five|six|ten|twelve|twenty|half|once|usual|wide|tall|long|high|deep|"
    r"broad|thick|anything)\b|\d|(?:an?|the)\s+(?:\w+\s+)?(?:fingers?|thumb|hand|palm|fist|hair|coin|nail|man|woman|"
    r"person|people|child|adult|rider|metre|centimetre|head|body|arm|neck|tail|legs?|eyes?|back|rest|upper|lower|front|"
    r"hind|rear|fore\w*|top|bottom|first|last|third|quarter|dozen|hundred)\b)"
)
_VERB = r"(?:has|have|shows?|wears?|carr(?:y|ies)|shares?)"

# Words of comparison
_WORDS = (
    r"unlike",
    r"(?:rather|other)\s+than",
    r"(?:compared|in\s+comparison)\s+(?:to|with)",
    r"(?:in|by)\s+contrast",
    r"instead\s+of",
    r"in\s+place\s+of",
    r"whereas",
    r"as\s+opposed\s+to",
    r"(?:set|keep|mark)s?\s+(?!wide|well|far|legs|close)(?:\S+\s+){1,9}?apart",
    r"distinguish\w*",
    r"(?:distinct|different)\s+from",
    r"differ(?:s|ing)?\s+from",
    r"(?:confused|mistaken)\s+(?:for|with)",
    r"similar\s+to",
    r"resembl\w+",
    r"(?:tells?|told)\s+(?:\S+\s+){1,9}?from",
    r"separates?\s+(?:\S+\s+){1,9}?from\s+(?:an?|the|its|any|all|every|other|those|most|that|one)",
    r"(?:set|mark)s?\s+(?:\S+\s+){0,9}?off\s+(?:\S+\s+){0,4}?from",
    r"nothing\s+like",
    r"a\s+fraction\s+of",
    rf"than\s+(?!{_OWN_PART_OR_MEASURE})\w+",
)

# Attributes that the class lacks and another class has
_LACKS = (
    r"lacks",
    rf"no\s+\w+(?:\s\w+)?\s+{_VERB}",
    r"(?:the|an?|that|which|those|s)\s+(?:\S+\s+){0,4}lack",
    r"as\s+(?:on|in|with|at|of|by|does|do|an?|the|most|other|many|those)\s+(?:\S+\s+){0,6}?(?:do|does|has|have|is|are)(?=[.,;])",
    r"(?:no|not|never|without|nor|none|neither)\b[^.;]*?\s(?:as\s+(?:on|in|with|at|of|those)|such\s+as)\s\w+",
    r"where\s+(?:an?|other|most|true|real|newer|ordinary)\s\w+",
    r"(?:none|without|no|not|nor|neither)\s+(?:of\s+)?(?:the|an?)\s[^.;,]{0,60}?\s(?:of|on|in)\s+(?:an?|the|other|any)\s\w+",
    r"(?:without|none\s+of)\s+(?:an?|the)\s(?:\w+\s)?\w+'s",
    r"(?:does|do|did|would|could|will)(?:\s+not)?(?:\s+have)?(?=[.,;])",
    r"(?:no|without)\s[^.;,]{0,50}?\b(?:has|have)(?=[.,;])",
)

# Patterns with the name of another class
_WITH_OTHER = (
    rf"(?:while|whereas|where|though|but)\s+(?:an?|the|on|in|of|its|any|most|that\s+of)?\s*(?:\w+[\s-]){{0,2}}{OTHER}",
    rf"(?:no|not|never|nor|none|without|neither)\b[^.;]{{0,90}}?\b(?:of|as|for|on|in|from)\s+(?:an?|the|any|other)?\s*"
    rf"(?:[\w-]+\s){{0,2}}{OTHER}",
    rf"(?:not|never|nor|neither|hardly)\s+(?:merely\s+|just\s+)?(?:an?|the|any)\s+(?:[\w-]+\s){{0,3}}{OTHER}",
    rf"(?:is|are)\s+no\s+(?:[\w-]+\s){{0,2}}{OTHER}",
    rf"(?:no|without)\s[^.;]{{0,60}}\b{OTHER}(?:'s)?\s+(?:{_VERB}|is|does|would)",
    rf"(?:like|as)\s+(?:an?|the|that\s+of\s+an?|those\s+of\s+an?)?\s*(?:[\w-]+\s){{0,2}}{OTHER}",
    rf"than\b[^.;]*{OTHER}",
    rf"(?:size|kind|cousin|relative|sister|version)\s+of\s+(?:an?|the)\s+(?:\w+\s)?{OTHER}",
    rf"{OTHER}'s",
)


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE)


_COMPARES, _COMPARES_WITH_OTHER = _any_of((*_WORDS, *_LACKS)), _any_of(_WITH_OTHER)


def comparisons(table: Table, aliases: Table | None = None) -> list[tuple[str, str, str]]:
    """Find the sentences of a data set that compare their class with another one.

    Args:
        table: Class name -> sentences.
        aliases: Class name -> other names of it.

    Returns:
        The class, the sentence, and the matching words, for each such sentence. In these words, NAME replaces the class
        and OTHERCLASS another one.
    """
    spellings: Mapping[str, Sequence[str]] = aliases or {}
    names = {name: [name, *spellings.get(name, ())] for name in table}
    any_name = name_pattern([spelling for group in names.values() for spelling in group])
    matches = []
    for name, sentences in table.items():
        own = name_pattern(names[name])
        for sentence in sentences:
            masked = own.sub(MASK, sentence)
            if words := _COMPARES.search(masked) or _COMPARES_WITH_OTHER.search(any_name.sub(OTHER, masked)):
                matches.append((name, sentence, words[0]))
    return matches
