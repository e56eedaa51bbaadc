// Page of one model. It loads the runtime and the model from its own folder, and classifies images on this device.
// resize.js, image.js, camera.js and try.js follow in this file.
import * as ort from "./ort.wasm.bundle.min.mjs";

const MODEL = JSON.parse(document.getElementById("model").textContent);
const MAX_SHOWN = 5; // classes
const element = document.querySelector(".try"), status = document.getElementById("status");
const session = loadModel();
session.catch(error => {
    status.className = "problem";
    status.textContent = `The model cannot be loaded: ${error.message}`;
});

async function loadModel() {
    ort.env.wasm.wasmPaths = {wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href};
    const created = await ort.InferenceSession.create(await download("model.onnx"), {executionProviders: ["wasm"]});
    status.textContent = "The model is loaded. Images stay on this device.";
    return created;
}
async function download(name) {
    const response = await fetch(new URL(name, import.meta.url));
    if (!response.ok) throw new Error(`${name}: HTTP status ${response.status}`);
    const content = new Uint8Array(MODEL.bytes), megabytes = (MODEL.bytes / 1e6).toFixed(0), reader = response.body.getReader();
    let received = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
        if (received + part.value.length > content.length) throw new Error(`${name} is not the file of this page`);
        content.set(part.value, received);
        received += part.value.length;
        status.textContent = `Loading the model: ${(received / 1e6).toFixed(0)} of ${megabytes} MB`;
    }
    if (received !== content.length) throw new Error(`${name} is incomplete`);
    return content;
}

// Logits and calibrated probabilities of the classes for an image file (a File or Blob).
export async function classify(file) {
    const {preprocessing} = MODEL, {size} = preprocessing;
    const pixels = prepare(await decodeFile(file, preprocessing), preprocessing);
    const inputs = {pixel_values: new ort.Tensor("float32", pixels, [1, 3, ...size])};
    const {logits, probabilities} = await (await session).run(inputs);
    return {logits: [...logits.data], probabilities: [...probabilities.data]};
}
// Whether an image belongs to none of the classes: its score is lower than that of most images of known classes.
export function isUnknown(logits) {
    if (!MODEL.unknown) return false;
    const scaled = logits.map(logit => logit / MODEL.temperature), largest = Math.max(...scaled);
    const sum = scaled.reduce((total, value) => total + Math.exp(value - largest), 0);
    const score = MODEL.unknown.score === "energy" ? largest + Math.log(sum) : 1 / sum;
    return score < MODEL.unknown.threshold;
}
function isPredicted(probabilities, label) { return probabilities[label] >= MODEL.thresholds[label]; }

function escapeHtml(value) { return value.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`); }
function rowHtml(label, probability, predicted) {
    const name = escapeHtml(MODEL.classes[label]);
    const mark = MODEL.thresholds ? `<i style="left: ${(100 * MODEL.thresholds[label]).toFixed(1)}%"></i>` : "";
    return `<tr data-name="${name}"${predicted ? ' class="predicted"' : ""}><th scope="row">${name}</th><td><span class="bar"
        style="--share: ${probability.toFixed(4)}">${mark}</span><span class="number">${(100 * probability).toFixed(0)} %</span></td></tr>`;
}
function answerHtml({logits, probabilities}) {
    const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]);
    const unknown = isUnknown(logits), rate = `${(100 * MODEL.unknown?.rate).toFixed(0)} %`;
    let predicted = unknown ? [] : order.slice(0, 1);
    if (MODEL.thresholds) predicted = order.filter(label => isPredicted(probabilities, label));
    const shown = order.slice(0, Math.max(MAX_SHOWN, predicted.length));
    const names = predicted.map(label => escapeHtml(MODEL.classes[label])).join(", ");
    const rows = shown.map(label => rowHtml(label, probabilities[label], predicted.includes(label))).join("");
    const marks = MODEL.thresholds ? '<p class="grey small">Marks are thresholds: labels are predicted from there on.</p>' : "";
    const why = unknown ? `<p class="warning">This image may belong to none of the classes: ${rate} of the images of known classes have a higher score.</p>` : "";
    return `<div class="verdict"><h2 class="winner">${names || (MODEL.thresholds ? "no label" : "unknown")}</h2>${marks}</div>
        <table class="chart"><thead><tr><th scope="col">${MODEL.thresholds ? "label" : "class"}</th><th scope="col">probability</th></tr></thead>
        <tbody>${rows}</tbody></table><div class="because">${why}</div>`;
}

// The two objects with which try.js asks for an answer: nothing is uploaded.
const upload = async file => ({path: file});
const server = {
    async answer({path, picture}) {
        try {
            return answerHtml(await classify(path ?? await (await fetch(picture)).blob()));
        } catch (error) {
            if (!(error instanceof ImageError)) console.error(error);
            const message = error instanceof ImageError ? error.message : `This image cannot be classified: ${error.message}`;
            return `<p class="problem" role="alert">${escapeHtml(message)}</p>`;
        }
    },
};
