"""Candidates of a comparison of backbones: the list of the package, or names that somebody specified."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...features.backbones.bundles import PREFIXES
from ...features.backbones.identity import MINI_NAME, canonical_name
from ...features.backbones.loading import local_weights
from ...utils.errors import UserError
from ...utils.reading import StrictModel, read_yaml, validate

CANDIDATES = Path(__file__).with_name("candidates.yaml")


class Candidate(StrictModel):
    """A backbone to compare.

    Attributes:
        name: Name, as in `load_backbone`.
        tag: Weights, as `pretrained` in `load_backbone`.
        megabytes: Size of the weights; None if unknown.
        licence: Licence of the weights; "" if unknown.
    """

    name: str
    tag: str = ""
    megabytes: float | None = None
    licence: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}" if self.tag else self.name


def read_candidates(specified: Sequence[str] = (), max_megabytes: float | None = None) -> list[Candidate]:
    """List the candidates: the specified ones, or else those of `candidates.yaml`.

    Args:
        specified: Names such as "ViT-B-32:openai", "mini" or "local-dir:FOLDER".
        max_megabytes: Largest size of the weights. A candidate of unknown size stays.

    Raises:
        UserError: If a name is invalid, no candidate is left, or one is specified twice.
    """
    listed = validate(list[Candidate], read_yaml(CANDIDATES, "a list of candidates"), str(CANDIDATES))
    candidates = [parse_candidate(text, listed) for text in specified] or listed
    if len({str(candidate) for candidate in candidates}) < len(candidates):
        raise UserError(f"expected different candidates, got {', '.join(map(str, candidates))}", "candidates.repeated")
    if max_megabytes is None:
        return candidates
    fitting = [candidate for candidate in candidates if (size_of(candidate) or 0) <= max_megabytes]
    if not fitting:
        sizes = ", ".join(f"{candidate} {size_of(candidate):.0f} MB" for candidate in candidates)
        raise UserError(f"no candidate has up to {max_megabytes:.0f} MB ({sizes}); raise --max-size", "candidates.size")
    return fitting


def parse_candidate(text: str, listed: Iterable[Candidate]) -> Candidate:
    """Parse a candidate such as "ViT-B-32:openai", whether or not such a backbone exists.

    A candidate in `listed` is returned from there, with its size and licence; others have no size, and no licence but
    that of "mini".
    """
    name = text
    tag = ""
    if not text.startswith(PREFIXES):
        name, _, tag = text.partition(":")
    name = canonical_name(name)
    licence = "mit" if name == MINI_NAME else ""
    candidate = Candidate(name=name, tag=tag, licence=licence)
    return next((each for each in listed if str(each) == str(candidate)), candidate)


def size_of(candidate: Candidate) -> float | None:
    """Size of the weights in megabytes: of the local file, else of the list; None if unknown."""
    file = local_weights(candidate.name, candidate.tag)
    return candidate.megabytes if file is None else file.stat().st_size / 1e6
