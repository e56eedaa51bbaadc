// Files that are chosen, dropped or pasted
const UPLOADS_AT_ONCE = 4;
let uploading = 0; // files that are not sent yet
async function sendFiles(files, to, failed = []) { // with the names of files that could not be read
    if (!files.length && !failed.length) return;
    const sent = [], waiting = [...files.entries()], progress = document.createElement("p"); // one request is one change for Undo
    let done = 0;
    progress.className = "hg hg-sending";
    progress.setAttribute("role", "status");
    document.body.append(progress);
    uploading += files.length;
    async function sendNext() {
        for (let next = waiting.shift(); next; next = waiting.shift()) {
            const [place, file] = next;
            progress.textContent = `Sending ${++done} of ${files.length} files. Keep this page open.`;
            try { sent[place] = [(await upload(file)).path, file.path || file.webkitRelativePath || file.name]; }
            catch { failed.push(file.name); }
        }
    }
    await Promise.all(Array.from({length: UPLOADS_AT_ONCE}, sendNext));
    progress.textContent = `Adding ${files.length} files. Keep this page open.`;
    await send({...to, files: sent.filter(Boolean), failed});
    uploading -= files.length;
    progress.remove();
}
addEventListener("beforeunload", event => { if (uploading) event.preventDefault(); }); // the browser asks first
async function filesOf(entries, failed, folder = "") { // also in folders, without hidden ones; adds the names of unreadable entries to `failed`
    const files = [];
    for (const entry of entries.filter(each => each && !each.name.startsWith("."))) {
        try {
            if (entry.isDirectory) files.push(...await filesOf(await entriesOf(entry), failed, `${folder}${entry.name}/`));
            else {
                const file = await new Promise((done, refused) => entry.file(done, refused));
                file.path = folder + file.name;
                files.push(file);
            }
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
element.addEventListener("change", event => {
    if (event.target.type !== "file") return;
    const files = [...event.target.files].filter(file => !/(^|\/)\./.test(file.webkitRelativePath)); // without hidden ones
    sendFiles(files, dataOf(event.target));
    event.target.value = "";
});
document.addEventListener("paste", event => { // into the class below the pointer or with the focus
    const place = element.querySelector("[data-place]:focus-within") ?? element.querySelector("[data-place]:hover");
    if (place && event.clipboardData.files.length) sendFiles([...event.clipboardData.files], {...place.dataset, do: "add"});
});
const placeBelow = event => event.target.closest?.("[data-place]");
function highlight(place) {
    for (const each of element.querySelectorAll(".over")) if (each !== place) each.classList.remove("over");
    place?.classList.add("over");
}
document.addEventListener("dragover", event => {
    const place = placeBelow(event);
    if (place) event.preventDefault();
    highlight(place);
});
document.addEventListener("dragleave", event => { if (!event.relatedTarget) highlight(null); });
element.addEventListener("drop", async event => {
    const place = placeBelow(event);
    highlight(null);
    if (!place) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()), failed = [];
    sendFiles(await filesOf(entries, failed), {...place.dataset, do: "add"}, failed);
});
