// Keys. In Check and Label, the arrows choose a card, and the other keys press its buttons. In Classes, the arrows move
// along the images of a class, which have one tab stop together, and x selects one.
const sent = new Set(); // SHA-256 of images whose card waits for the answer to a key
const OTHER_KEYS = "dialog, input, select, textarea, canvas"; // elements that have keys of their own
function columnsOf(nodes) { return nodes.filter(node => node.offsetTop === nodes[0].offsetTop).length; }
function stepOf(key, columns) { return {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[key]; }
function actionOf(card, key) { // of a button of the card, or of the number of a class; undefined for another key
    const button = card.querySelector(`button[data-key="${CSS.escape(key)}"]`);
    if (button) return dataOf(button);
    const to = /^[1-9]$/.test(key) ? classesOf()[key - 1] : undefined;
    return to && {...dataOf(card), do: "move", to};
}
function focusCard(card) { card.focus(); card.scrollIntoView({block: "nearest"}); }
function pressInThumbs(event) {
    const thumb = event.target.closest(".thumb"), box = thumb.querySelector("input");
    if (event.key === "x") {
        box.checked = !box.checked;
        select(box, event.shiftKey);
    } else {
        const thumbs = [...thumb.parentElement.querySelectorAll(".thumb")], step = stepOf(event.key, columnsOf(thumbs));
        const next = thumbs[thumbs.indexOf(thumb) + step]?.querySelector("button");
        if (!step) return;
        if (next) {
            thumb.querySelector("button").tabIndex = -1;
            next.tabIndex = 0;
            next.focus();
        }
    }
    event.preventDefault();
}
async function pressButton(card, data) { // a refused action can be repeated
    if (await send(data)) return;
    sent.delete(card.dataset.digest);
    focusCard(card);
}
function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches?.(".thumb button")) return pressInThumbs(event);
    const panel = document.getElementById(`panel-${document.body.dataset.tab}`);
    const shown = [...panel.querySelectorAll("article[data-digest]")];
    if (!shown.length || event.target.closest(OTHER_KEYS)) return;
    if (["Enter", " "].includes(event.key) && event.target.closest("button, summary, a")) return;
    const focused = shown.findIndex(card => card.contains(document.activeElement));
    const step = stepOf(event.key, columnsOf(shown));
    if (step && event.target.matches("[role=tab]")) return;
    if (step) focusCard(shown[focused < 0 ? 0 : Math.min(Math.max(focused + step, 0), shown.length - 1)]);
    else if (event.key === "u") document.querySelector("#top [data-do=undo]")?.click();
    else {
        const card = shown.slice(Math.max(focused, 0)).find(each => !sent.has(each.dataset.digest));
        const data = card && actionOf(card, event.key);
        if (!data) return;
        sent.add(card.dataset.digest);
        focusCard(shown[shown.indexOf(card) + 1] ?? card);
        pressButton(card, data);
    }
    event.preventDefault();
}
document.addEventListener("keydown", press);
document.addEventListener("teach-change", () => {
    const shown = new Set([...element.querySelectorAll("article[data-digest]")].map(card => card.dataset.digest));
    for (const digest of sent) if (!shown.has(digest)) sent.delete(digest);
});
