// Recorder of a class: a panel with the camera, which stays open while the cards change. It is read after camera.js.
const FRAME_MILLISECONDS = 250, FRAME_SIDE = 640; // pixels of the longer side of a recorded frame
const GREY_SIDE = 16, SAME = 2; // frames are near-duplicates if 16x16 grey versions differ by less than 2 of 255 on average
const PANEL = `<div role="dialog" class="hg hg-camera"><video autoplay muted playsinline></video>
<div><h2></h2><p role="status"></p><button type="button" class="record primary">Hold to record</button>
<button type="button">Close</button></div></div>`;
function greyOf(video) {
    const small = new OffscreenCanvas(GREY_SIDE, GREY_SIDE).getContext("2d");
    small.imageSmoothingQuality = "high";
    small.drawImage(video, 0, 0, GREY_SIDE, GREY_SIDE);
    const {data} = small.getImageData(0, 0, GREY_SIDE, GREY_SIDE);
    return Array.from({length: GREY_SIDE ** 2}, (_, i) => (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
}
const difference = (first, second) => first.reduce((sum, value, i) => sum + Math.abs(value - second[i]), 0) / first.length;
async function frameOf(video, name) {
    const scale = Math.min(1, FRAME_SIDE / Math.max(video.videoWidth, video.videoHeight));
    const canvas = new OffscreenCanvas(scale * video.videoWidth, scale * video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return new File([await canvas.convertToBlob({type: "image/jpeg", quality: 0.9})], name, {type: "image/jpeg"});
}
async function openRecorder(place) {
    document.querySelector(".hg-camera")?.dispatchEvent(new Event("close"));
    const holder = document.createElement("div");
    holder.innerHTML = PANEL;
    const panel = holder.firstChild, video = panel.querySelector("video"), [record, close] = panel.querySelectorAll("button");
    const report = text => { panel.querySelector("p").textContent = text; };
    const greys = []; // of the recorded frames
    let frames = [], left = 0, timer = null, stream = null;
    let recording = 0; // time of its start, in the names of its frames, which --group-pattern can find
    panel.setAttribute("aria-label", `Camera for ${place}`);
    panel.querySelector("h2").textContent = `Camera: ${place}`;
    const take = () => {
        const grey = greyOf(video);
        if (greys.some(other => difference(grey, other) < SAME)) left++;
        else {
            greys.push(grey);
            frames.push(frameOf(video, `camera-${recording}-${frames.length}.jpg`));
        }
        report(`${greys.length} recorded, ${left} left out as near-duplicates`);
    };
    const start = () => {
        if (timer !== null || !video.videoWidth) return;
        recording = Date.now();
        timer = setInterval(take, FRAME_MILLISECONDS);
        take();
    };
    const stop = async () => {
        clearInterval(timer);
        timer = null;
        const recorded = frames;
        frames = [];
        sendFiles(await Promise.all(recorded), {do: "add", place});
    };
    record.addEventListener("pointerdown", event => { record.setPointerCapture(event.pointerId); start(); });
    for (const end of ["pointerup", "pointercancel", "keyup", "blur"]) record.addEventListener(end, stop);
    record.addEventListener("keydown", event => { if ([" ", "Enter"].includes(event.key)) { event.preventDefault(); start(); } });
    record.addEventListener("contextmenu", event => event.preventDefault()); // a long touch opens a menu
    panel.addEventListener("keydown", event => { if (event.key === "Escape") close.click(); });
    panel.addEventListener("close", () => { stop(); closeCamera(stream); panel.remove(); });
    close.addEventListener("click", () => panel.dispatchEvent(new Event("close")));
    document.body.append(panel);
    record.focus();
    try {
        stream = video.srcObject = await openCamera();
        if (!panel.isConnected) closeCamera(stream);
    } catch (error) {
        report(error.message);
    }
}
