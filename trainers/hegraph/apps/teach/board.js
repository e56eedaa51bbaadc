// Buttons, forms, keys and dropped files of a board. Gradio runs this file with `element`, `trigger` and `upload`. Each
// action is sent as the event "act", with the data attributes of the button and of the elements around it (page.py).
const dataOf = node => ({...node.closest("[data-place]")?.dataset, ...node.closest("[data-digest]")?.dataset, ...node.dataset});
const send = data => trigger("act", data);
const namesOf = node => JSON.parse(node.closest("[data-names]").dataset.names);
const places = names => [...names.map(name => [name, name]), ["None of these", "none of these"], ["Unlabelled", "unlabelled"], ["Remove", ""]];
function buttonOf(text, action) {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = text;
    button.addEventListener("click", action);
    return button;
}
function pick(node) { // enlarge an image and choose its class
    const dialog = document.createElement("dialog"), picture = node.closest("[data-digest]"), data = dataOf(picture);
    const image = picture.querySelector("img")?.cloneNode(), heading = document.createElement("h2");
    const show = next => { if (next?.matches("[data-digest]")) { dialog.close(); pick(next); } };
    const name = data.image.split("/").pop();
    heading.textContent = data.place ? `${name} (${data.place})` : name;
    dialog.className = "hg hg-pick";
    dialog.setAttribute("aria-label", `${name}: choose a class`);
    if (image) { image.loading = "eager"; dialog.append(image); }
    const row = document.createElement("p");
    row.textContent = "Move to:";
    dialog.append(heading, row);
    for (const [text, to] of places(namesOf(node)))
        if (to !== data.place) dialog.append(buttonOf(text, () => { dialog.close(); send({...data, do: "move", to}); }));
    dialog.append(buttonOf("Cancel", () => dialog.close()));
    dialog.addEventListener("keydown", event => {
        if (event.key === "ArrowRight") show(picture.nextElementSibling);
        if (event.key === "ArrowLeft") show(picture.previousElementSibling);
    });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}

// Selection of several images
const selected = new Map(), bar = document.createElement("div"); // path -> SHA-256
let lastBox = null;
bar.className = "hg hg-selection";
bar.setAttribute("role", "region");
bar.setAttribute("aria-label", "Selected images");
function showSelection() {
    const boxes = [...element.querySelectorAll(".thumb input")], shown = new Set();
    for (const box of boxes) {
        const {image, digest} = box.parentElement.dataset;
        box.checked = selected.get(image) === digest;
        if (box.checked) shown.add(image);
    }
    for (const image of [...selected.keys()]) if (!shown.has(image)) selected.delete(image);
    bar.remove();
    if (!selected.size) return;
    const choice = document.createElement("select"), images = JSON.stringify([...selected]);
    choice.setAttribute("aria-label", "Move the selected images to");
    choice.append(new Option("Move to", "-"), ...places(namesOf(boxes[0])).map(([text, to]) => new Option(text, to)));
    choice.addEventListener("change", () => finish(() => send({do: "move", images, to: choice.value})));
    bar.replaceChildren(`${selected.size} selected `, choice,
        buttonOf("Remove", () => finish(() => send({do: "move", images, to: ""}))), buttonOf("Clear", () => finish(() => {})));
    document.body.append(bar);
}
function finish(action) { selected.clear(); showSelection(); action(); }
function select(box, range) { // with `range`, all images from the last box to this one
    const boxes = [...element.querySelectorAll(".thumb input")];
    const to = boxes.indexOf(box), last = boxes.indexOf(lastBox), from = range && last >= 0 ? last : to;
    for (const each of boxes.slice(Math.min(from, to), Math.max(from, to) + 1)) {
        const {image, digest} = each.parentElement.dataset;
        if (box.checked) selected.set(image, digest);
        else selected.delete(image);
    }
    lastBox = box;
    showSelection();
}

// Files
async function sendFiles(files, to, failed = []) { // with the names of files that could not be read
    const sent = [], progress = document.createElement("p"); // one request is one change for Undo
    progress.className = "hg hg-sending";
    document.body.append(progress);
    for (const [number, file] of files.entries()) {
        progress.textContent = `Sending ${number + 1} of ${files.length} files`;
        try { sent.push([(await upload(file)).path, file.name]); } catch { failed.push(file.name); }
    }
    progress.remove();
    if (files.length || failed.length) send({...to, files: JSON.stringify(sent), failed: JSON.stringify(failed)});
}
async function filesOf(entries, failed) { // also in folders, without hidden ones; adds the names of unreadable entries to `failed`
    const files = [];
    for (const entry of entries.filter(each => each && !each.name.startsWith("."))) {
        try {
            if (entry.isFile) files.push(await new Promise((done, refused) => entry.file(done, refused)));
            else files.push(...await filesOf(await entriesOf(entry), failed));
        } catch { failed.push(entry.name); }
    }
    return files;
}
async function entriesOf(folder) {
    const reader = folder.createReader(), entries = [];
    for (;;) {
        const more = await new Promise((done, refused) => reader.readEntries(done, refused)); // up to 100
        if (!more.length) return entries;
        entries.push(...more);
    }
}

// Keys of the cards: the arrows choose a card, the other keys press its buttons
const sent = new Set(); // SHA-256 of images whose card waits for the answer to a key
const OTHER_KEYS = "dialog, input, select, textarea, canvas"; // elements that have keys of their own
function actionOf(card, key) { // of a button of the card, or of the number of a class; undefined for another key
    const button = card.querySelector(`button[data-key="${CSS.escape(key)}"]`);
    if (button) return dataOf(button);
    const to = /^[1-9]$/.test(key) ? namesOf(card)[key - 1] : undefined;
    return to && {...dataOf(card), do: "move", to};
}
function focusCard(card) { card.focus(); card.scrollIntoView({block: "nearest"}); }
function press(event) {
    const cards = [...element.querySelectorAll("article[data-digest]")];
    if (!cards.length || !element.checkVisibility()) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(OTHER_KEYS)) return;
    if (["Enter", " "].includes(event.key) && event.target.closest("button, summary, a")) return;
    if (document.querySelector("#status .problem")) sent.clear(); // a refused action can be repeated
    const focused = cards.findIndex(card => card.contains(document.activeElement));
    const columns = cards.filter(card => card.offsetTop === cards[0].offsetTop).length;
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (step && event.target.matches("[role=tab]")) return;
    if (step) focusCard(cards[focused < 0 ? 0 : Math.min(Math.max(focused + step, 0), cards.length - 1)]);
    else if (event.key === "u") document.querySelector("#status [data-do=undo]")?.click();
    else {
        const card = cards.slice(Math.max(focused, 0)).find(each => !sent.has(each.dataset.digest));
        const data = card && actionOf(card, event.key);
        if (!data) return;
        sent.add(card.dataset.digest);
        focusCard(card);
        send(data);
    }
    event.preventDefault();
}
document.addEventListener("keydown", press);
new MutationObserver(() => {
    for (const digest of sent) if (!element.querySelector(`article[data-digest="${digest}"]`)) sent.delete(digest);
    showSelection();
}).observe(element, {childList: true, subtree: true, attributeFilter: ["data-digest"]});

element.addEventListener("click", event => {
    const button = event.target.closest("button[data-do]");
    if (button?.dataset.do === "pick") pick(button);
    else if (button?.dataset.do === "camera") openRecorder(dataOf(button).place);
    else if (button) send(dataOf(button));
    else if (event.target.matches(".thumb input")) select(event.target, event.shiftKey);
});
element.addEventListener("submit", event => {
    event.preventDefault();
    send({...dataOf(event.target), name: event.target.elements.name.value});
    event.target.reset();
});
element.addEventListener("change", event => {
    if (event.target.type !== "file") return;
    sendFiles([...event.target.files], dataOf(event.target));
    event.target.value = "";
});
document.addEventListener("paste", event => { // into the class below the pointer or with the focus
    const place = element.querySelector("[data-place]:focus-within") ?? element.querySelector("[data-place]:hover");
    if (place && event.clipboardData.files.length) sendFiles([...event.clipboardData.files], {...place.dataset, do: "add"});
});
element.addEventListener("dragover", event => { if (event.target.closest("[data-place]")) event.preventDefault(); });
element.addEventListener("drop", async event => {
    const place = event.target.closest("[data-place]");
    if (!place) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()), failed = [];
    sendFiles(await filesOf(entries, failed), {...place.dataset, do: "add"}, failed);
});
