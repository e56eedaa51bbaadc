// Buttons, forms and dropped files of a board. Gradio runs this with `element`, `trigger` and `upload`; what was done is
// sent as the event "act", with what the button and the elements around it say (board.py).
const about = node => ({...node.closest("[data-place]")?.dataset, ...node.closest("[data-digest]")?.dataset, ...node.dataset});
const send = data => trigger("act", data);
function pick(button) {
    const dialog = document.createElement("dialog"), image = button.querySelector("img") ?? button.parentElement.querySelector("img");
    const names = JSON.parse(button.closest("[data-names]").dataset.names);
    dialog.className = "hg hg-pick";
    dialog.setAttribute("aria-label", "What is this?");
    if (image) dialog.append(image.cloneNode());
    const choice = (text, to) => {
        const each = document.createElement("button");
        each.type = "button"; each.textContent = text;
        each.addEventListener("click", () => { dialog.close(); if (to !== null) send({...about(button), do: "move", to}); });
        dialog.append(each);
    };
    for (const name of names) choice(name, name);
    choice("None of these", "none of these");
    choice("No label", "unlabelled");
    choice("Remove", "");
    choice("Cancel", null);
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}
async function sendFiles(files, to) {
    const sent = [], failed = [], note = document.createElement("p"); // one request, so that one Undo takes it back
    note.className = "hg hg-sending";
    document.body.append(note);
    for (const [number, file] of files.entries()) {
        note.textContent = `Sending ${number + 1} of ${files.length} files`;
        try { sent.push({path: (await upload(file)).path, name: file.name}); } catch { failed.push(file.name); }
    }
    note.remove();
    if (files.length) send({...to, files: JSON.stringify(sent), failed: JSON.stringify(failed)});
}
async function filesOf(entries) { // of folders as well
    const found = [];
    for (const entry of entries.filter(Boolean)) {
        if (entry.isFile) found.push(await new Promise((done, failed) => entry.file(done, failed)));
        else {
            const reader = entry.createReader();
            for (;;) {
                const inside = await new Promise((done, failed) => reader.readEntries(done, failed));
                if (!inside.length) break;
                found.push(...await filesOf(inside));
            }
        }
    }
    return found;
}
element.addEventListener("click", event => {
    const button = event.target.closest("button[data-do]");
    if (button?.dataset.do === "pick") pick(button);
    else if (button) send(about(button));
});
element.addEventListener("submit", event => {
    event.preventDefault();
    send({...about(event.target), name: event.target.elements.name.value});
    event.target.reset();
});
element.addEventListener("change", event => {
    if (event.target.type !== "file") return;
    sendFiles([...event.target.files], about(event.target));
    event.target.value = "";
});
element.addEventListener("dragover", event => { if (event.target.closest("[data-place]")) event.preventDefault(); });
element.addEventListener("drop", async event => {
    const place = event.target.closest("[data-place]");
    if (!place) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry());
    sendFiles(await filesOf(entries), {...place.dataset, do: "add"});
});
