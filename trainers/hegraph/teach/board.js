// Buttons, forms and dropped files of a board. Gradio runs this file with `element`, `trigger` and `upload`. Each action
// is sent as the event "act", with the data attributes of the button and of the elements around it (page.py).
const dataOf = node => ({...node.closest("[data-place]")?.dataset, ...node.closest("[data-digest]")?.dataset, ...node.dataset});
const send = data => trigger("act", data);
function pick(button) {
    const dialog = document.createElement("dialog"), image = button.querySelector("img") ?? button.parentElement.querySelector("img");
    const names = JSON.parse(button.closest("[data-names]").dataset.names);
    dialog.className = "hg hg-pick";
    dialog.setAttribute("aria-label", "Choose a class");
    if (image) dialog.append(image.cloneNode());
    const choice = (text, to) => {
        const each = document.createElement("button");
        each.type = "button"; each.textContent = text;
        each.addEventListener("click", () => { dialog.close(); if (to !== null) send({...dataOf(button), do: "move", to}); });
        dialog.append(each);
    };
    for (const name of names) choice(name, name);
    choice("None of these", "none of these");
    choice("Unlabelled", "unlabelled");
    choice("Remove", "");
    choice("Cancel", null);
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}
async function sendFiles(files, to) {
    const sent = [], failed = [], progress = document.createElement("p"); // one request is one change for Undo
    progress.className = "hg hg-sending";
    document.body.append(progress);
    for (const [number, file] of files.entries()) {
        progress.textContent = `Sending ${number + 1} of ${files.length} files`;
        try { sent.push({path: (await upload(file)).path, name: file.name}); } catch { failed.push(file.name); }
    }
    progress.remove();
    if (files.length) send({...to, files: JSON.stringify(sent), failed: JSON.stringify(failed)});
}
async function filesOf(entries) { // also of folders
    const files = [];
    for (const entry of entries.filter(Boolean)) {
        if (entry.isFile) files.push(await new Promise((done, failed) => entry.file(done, failed)));
        else {
            const reader = entry.createReader();
            for (;;) {
                const inside = await new Promise((done, failed) => reader.readEntries(done, failed));
                if (!inside.length) break;
                files.push(...await filesOf(inside));
            }
        }
    }
    return files;
}
element.addEventListener("click", event => {
    const button = event.target.closest("button[data-do]");
    if (button?.dataset.do === "pick") pick(button);
    else if (button) send(dataOf(button));
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
element.addEventListener("dragover", event => { if (event.target.closest("[data-place]")) event.preventDefault(); });
element.addEventListener("drop", async event => {
    const place = event.target.closest("[data-place]");
    if (!place) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry());
    sendFiles(await filesOf(entries), {...place.dataset, do: "add"});
});
