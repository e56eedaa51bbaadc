// Component that tries a model. Gradio runs this file with `element`, `upload` and `server`, after canvas.js and camera.js.
const answer = element.querySelector("#answer"), video = element.querySelector("video");
const preview = element.querySelector(".drop img");
const PAUSE = 100; // milliseconds, at least between two frames
const FRAME_SIDE = 336; // pixels of a frame
let latest = 0, stream = null, again = null; // `again` repeats the request whose answer is shown

function grab() { // the square in the middle of the camera's picture, as a data URL
    const canvas = document.createElement("canvas"), size = Math.min(video.videoWidth, video.videoHeight);
    canvas.width = canvas.height = FRAME_SIDE;
    canvas.getContext("2d").drawImage(
        video, (video.videoWidth - size) / 2, (video.videoHeight - size) / 2, size, size, 0, 0, FRAME_SIDE, FRAME_SIDE);
    return canvas.toDataURL("image/jpeg", 0.9);
}
// Only the answer to the latest request is shown. `make` returns the request, or a promise of it.
async function ask(make, live = false) {
    const own = ++latest;
    again = live ? null : () => ask(make);
    let html;
    try { html = await server.answer(await make()); }
    catch { html = '<p class="problem" role="alert">The image did not arrive, or has more than 20 MB.</p>'; }
    if (own === latest) show(html, live);
}
function show(html, live) {
    const next = document.createElement("div"), rows = root => [...root.querySelectorAll("tr[data-name]")];
    next.innerHTML = html;
    const shown = new Map(rows(answer).map(row => [row.dataset.name, row])), fresh = rows(next);
    answer.setAttribute("aria-live", live ? "off" : "polite");
    if (!live || !fresh.length || fresh.length !== shown.size || !fresh.every(row => shown.has(row.dataset.name))) {
        answer.replaceChildren(...next.childNodes);
        return;
    }
    for (const row of fresh) { // the bars of a row move
        const old = shown.get(row.dataset.name), cells = [...row.cells];
        old.className = row.className;
        for (const [column, cell] of [...old.cells].entries()) {
            cell.querySelector(".bar")?.style.setProperty("--share", cells[column].querySelector(".bar").style.getPropertyValue("--share"));
            if (column) cell.querySelector(".number").textContent = cells[column].querySelector(".number").textContent;
        }
    }
    const open = answer.querySelector("details")?.open;
    if (open) next.querySelector("details")?.setAttribute("open", "");
    for (const part of [".verdict", ".because"]) answer.querySelector(part).replaceWith(next.querySelector(part));
}
async function openSource(name) {
    stopCamera();
    for (const button of element.querySelectorAll("[data-source]"))
        button.setAttribute("aria-pressed", button.dataset.source === name);
    for (const panel of element.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
    if (name === "camera") await startCamera();
}
async function startCamera() {
    try {
        const opened = await openCamera();
        if (!video.offsetParent) return closeCamera(opened); // another source was chosen meanwhile
        stream = video.srcObject = opened;
        await video.play();
    } catch (error) {
        show('<p class="problem" role="alert"></p>');
        answer.firstChild.textContent = error.message;
        return;
    }
    for (const own = stream; stream === own;) {
        const start = performance.now();
        if (!video.offsetParent) return openSource("image"); // another tab of the page was opened
        if (!document.hidden) await ask(() => ({picture: grab()}), true);
        await new Promise(done => setTimeout(done, Math.max(PAUSE - performance.now() + start, 10)));
    }
}
function stopCamera() { closeCamera(stream); stream = null; latest++; }
function showPreview(url) {
    preview.src = url;
    preview.hidden = !url;
    element.querySelector(".drop span").hidden = Boolean(url);
}
async function openFile(file) {
    if (!file) return;
    await openSource("image");
    showPreview(URL.createObjectURL(file));
    const uploaded = upload(file);
    ask(async () => ({path: (await uploaded).path}));
}
element.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button?.dataset.source) openSource(button.dataset.source);
    if (button?.dataset.scan) { showPreview(button.dataset.scan); ask(() => ({picture: button.dataset.scan})); }
});
element.querySelector("input[type=file]").addEventListener("change", event => {
    openFile(event.target.files[0]);
    event.target.value = "";
});
element.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("dragover", event => { // the browser would replace the page by a file that misses its target
    if (event.defaultPrevented || event.target.closest(".drop")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "none";
});
element.addEventListener("drop", event => { event.preventDefault(); openFile(event.dataTransfer.files[0]); });
document.addEventListener("paste", event => {
    const file = [...event.clipboardData.files].find(each => each.type.startsWith("image/"));
    if (file && answer.offsetParent) openFile(file);
});
preview.addEventListener("error", () => showPreview("")); // a format that only the server reads
document.addEventListener("model-change", () => { if (answer.offsetParent) again?.(); });
const drawing = element.querySelector(".draw");
if (drawing) startCanvas(drawing, value => ask(() => ({drawing: value})));
