// Dialog that enlarges an image, and the selection of several images
function pick(node) { // enlarge an image and choose its class
    const dialog = document.createElement("dialog"), picture = node.closest("[data-digest]"), data = dataOf(picture);
    const image = picture.querySelector("img")?.cloneNode(), heading = document.createElement("h2");
    const move = step => {
        const next = step > 0 ? picture.nextElementSibling : picture.previousElementSibling;
        if (next?.matches("[data-digest]")) { dialog.close(); pick(next); }
    };
    const name = data.image.split("/").pop(), box = picture.querySelector("input[type=checkbox]");
    heading.textContent = data.place ? `${name} (${data.place})` : name;
    dialog.className = "hg hg-pick";
    dialog.setAttribute("aria-label", `${name}: choose a class`);
    if (image) { image.loading = "eager"; dialog.append(image); }
    const row = document.createElement("p");
    row.textContent = "Move to:";
    dialog.append(heading, row);
    for (const [text, to] of places())
        if (to !== data.place) dialog.append(buttonOf(text, () => { dialog.close(); send({...data, do: "move", to}); }));
    if (box) dialog.append(buttonOf("Select several", () => { dialog.close(); box.checked = true; select(box, false); }));
    dialog.append(buttonOf("Cancel", () => dialog.close()));
    dialog.addEventListener("keydown", event => {
        if (event.key === "ArrowRight") move(1);
        if (event.key === "ArrowLeft") move(-1);
    });
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}

const selected = new Map(), bar = document.createElement("div"); // path -> SHA-256
let lastBox = null;
bar.className = "hg hg-selection";
bar.setAttribute("role", "region");
bar.setAttribute("aria-label", "Selected images");
function showSelection() { // an image that was moved or removed is not selected any more
    const boxes = [...element.querySelectorAll(".thumb input")];
    const shown = new Map(boxes.map(box => [box.parentElement.dataset.image, box]));
    for (const [image, digest] of selected) if (shown.get(image)?.parentElement.dataset.digest !== digest) selected.delete(image);
    for (const [image, box] of shown) box.checked = selected.has(image);
    document.body.classList.toggle("selecting", selected.size > 0);
    bar.remove();
    if (!selected.size) return;
    const choice = document.createElement("select"), images = [...selected];
    choice.setAttribute("aria-label", "Move the selected images to");
    choice.append(new Option("Move to", "-"), ...places().map(([text, to]) => new Option(text, to)));
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
