// Parts of the page. Gradio runs board.js, pick.js, files.js, keys.js, recorder.js and tabs.js, one after the other, with
// `element`, `server` and `upload`. board.py describes the parts; only those that changed are sent.
const BUSY_MILLISECONDS = 400, POLL_MILLISECONDS = 800, HIDDEN_MILLISECONDS = 5000; // between two requests
const NEAR = "600px"; // distance from the window at which the images of a class are asked for
const MORE = 200; // images that the button below the first ones shows
const dataOf = node => ({...node.closest("[data-place]")?.dataset, ...node.closest("[data-digest]")?.dataset, ...node.dataset});
const find = (attribute, name) => document.querySelector(`[data-${attribute}="${CSS.escape(name)}"]`);
const classesOf = () => [...find("list", "classes").children].map(card => card.dataset.part).filter(name => name !== "none of these");
const places = () => [...classesOf().map(name => [name, name]), ["None of these", "none of these"], ["Unlabelled", "unlabelled"], ["Remove", ""]];
const cards = new Map(); // "LIST/KEY" -> HTML
let number = -1, timer = null; // version that the page shows
let drawing = ""; // data URL of the canvas

function buttonOf(text, action) {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = text;
    button.addEventListener("click", action);
    return button;
}
function nodeOf(html) {
    const holder = document.createElement("template");
    holder.innerHTML = html.trim();
    return holder.content.firstElementChild;
}

// Requests
function showMessage(message, problem) {
    const sentence = text => text && !text.endsWith(".") ? `${text}.` : text;
    const alert = document.getElementById("problem");
    document.getElementById("message").textContent = sentence(message);
    alert.textContent = sentence(problem);
    alert.hidden = !problem;
}
async function ask(name, request) { // the answer of the program, or {problem}
    try { return await server[`teach_${name}`](request); }
    catch { return {problem: "The program does not answer; start it again"}; }
}
async function send(data) { // an action; returns whether it was done
    showMessage("Working", "");
    const answer = await ask("act", {...data, number});
    showMessage(answer.message ?? "", answer.problem ?? "");
    if (answer.parts) show(answer);
    return !answer.problem;
}
async function poll() {
    clearTimeout(timer);
    const answer = await ask("changes", {number});
    if (answer.parts) show(answer);
    else showMessage("", answer.problem);
    const pause = document.hidden ? HIDDEN_MILLISECONDS : answer.busy ? BUSY_MILLISECONDS : POLL_MILLISECONDS;
    clearTimeout(timer);
    timer = setTimeout(poll, pause);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });

// Showing
function show(answer) {
    if (answer.number < number) return; // a later answer has arrived before
    number = answer.number;
    const entries = Object.entries(answer.parts).map(([key, value]) => [...split(key), value]);
    const of = wanted => entries.filter(([kind]) => kind === wanted);
    for (const [, name, value] of of("flag")) document.body.classList.toggle(name, value);
    for (const [, name, html] of of("card")) cards.set(name, html);
    for (const list of new Set([...of("list"), ...of("card")].map(([kind, name]) => kind === "list" ? name : name.split("/")[0])))
        refill(find("list", list), of("list").find(([, name]) => name === list)?.[2] ?? keysOf(list), key => cards.get(`${list}/${key}`));
    for (const [, name, html] of of("slot")) {
        const slot = find("slot", name);
        if (!slot) continue;
        const action = slot.contains(document.activeElement) && document.activeElement.dataset.do; // of the focused button
        slot.innerHTML = html;
        if (action) slot.querySelector(`[data-do="${action}"]`)?.focus();
    }
    for (const [, name] of of("thumbs")) markStale(find("thumbs", name));
    document.dispatchEvent(new Event("teach-change"));
    if (of("model").length) document.dispatchEvent(new Event("model-change")); // try.js predicts again
}
function split(key) { const at = key.indexOf(":"); return [key.slice(0, at), key.slice(at + 1)]; }
const keysOf = list => [...find("list", list).children].map(card => card.dataset.part);
const shownHtml = new WeakMap(); // node -> the HTML that made it
function refill(container, keys, htmlOf) { // keeps the nodes whose HTML is the same
    const old = new Map([...container.children].map(node => [node.dataset.part, node]));
    const nodes = keys.map(key => {
        const html = htmlOf(key), node = old.get(key);
        if (node && shownHtml.get(node) === html) return node;
        const fresh = nodeOf(html);
        fresh.dataset.part = key;
        shownHtml.set(fresh, html);
        const focused = node?.contains(document.activeElement);
        node?.replaceWith(fresh);
        if (focused) fresh.focus();
        return fresh;
    });
    const kept = new Set(nodes);
    for (const node of [...container.children]) if (!kept.has(node)) node.remove();
    nodes.forEach((node, place) => { if (container.children[place] !== node) container.insertBefore(node, container.children[place] ?? null); });
    for (const box of container.querySelectorAll("[data-thumbs]")) observer.observe(box.parentElement); // the card, since the browser skips the contents of distant cards
}

// Images of the classes, of which only those near the window are asked for
const stale = new Set(), visible = new Set();
const observer = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
        const box = target.querySelector("[data-thumbs]");
        if (isIntersecting) visible.add(box);
        else visible.delete(box);
        if (isIntersecting && stale.has(box)) loadThumbs(box);
    }
}, {rootMargin: NEAR});
function markStale(box) {
    if (!box) return;
    stale.add(box);
    if (visible.has(box)) loadThumbs(box);
}
async function loadThumbs(box) {
    stale.delete(box);
    const answer = await ask("thumbs", {place: box.dataset.thumbs, limit: Number(box.dataset.limit ?? MORE)});
    if (!answer.keys) { stale.add(box); return; }
    const focused = box.contains(document.activeElement) && document.activeElement.closest(".thumb")?.dataset.part;
    refill(box, answer.keys, key => answer.cards[key]);
    if (answer.more) box.append(buttonOf(`Show ${Math.min(answer.more, MORE)} of ${answer.more} more`, () => {
        box.dataset.limit = Number(box.dataset.limit ?? MORE) + MORE;
        loadThumbs(box);
    }));
    const buttons = [...box.querySelectorAll(".thumb button")];
    (buttons.find(button => button.parentElement.dataset.part === focused) ?? buttons[0])?.setAttribute("tabindex", "0");
    showSelection();
}

// Buttons and forms
async function exportFile(button) {
    button.disabled = true;
    showMessage("Preparing the file", "");
    const {url, problem} = await ask("export", {name: button.dataset.name});
    button.disabled = false;
    showMessage(problem ? "" : `${button.dataset.name} is saved by the browser`, problem ?? "");
    if (!url) return;
    const link = document.createElement("a");
    link.href = url; link.download = button.dataset.name;
    link.click();
}
async function compare(button) {
    const shown = document.getElementById("backbones");
    button.disabled = true;
    shown.textContent = "Comparing; a large encoder takes minutes.";
    const {html, problem} = await ask("compare", {offline: document.getElementById("offline").checked});
    button.disabled = false;
    shown.innerHTML = html ?? "";
    if (problem) showMessage("", problem);
}
async function switchTo(data) {
    if (await send(data)) document.getElementById("backbones").replaceChildren();
}
const ACTIONS = {
    pick, compare, export: exportFile, camera: button => openRecorder(dataOf(button).place),
    draw: button => send({...dataOf(button), drawing}), switch: button => switchTo(dataOf(button)),
};
document.addEventListener("click", event => {
    const button = event.target.closest("button[data-do]");
    if (button) (ACTIONS[button.dataset.do] ?? (each => send(dataOf(each))))(button);
    else if (event.target.matches(".thumb input")) select(event.target, event.shiftKey);
});
element.addEventListener("submit", async event => {
    event.preventDefault();
    const form = event.target;
    if (await send({...dataOf(form), name: form.elements.name.value})) form.reset(); // a refused name stays
});
