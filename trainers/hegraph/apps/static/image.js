// From an image file to the input of a model, as `hegraph predict` prepares it: upright by its EXIF orientation, on white
// where it is transparent, without conversion of colours, resized and cropped.
const MAX_PIXELS = 50_000_000;
const MAX_RATIO = 1000; // of the sides of an image
const OVERSAMPLING = 2; // a reduced photo has at least this multiple of the sides of the model's input,
const LEAST_SIDE = 400; // and a shorter side of at least so many pixels
const STRIP_PIXELS = 2 ** 20; // that are read at once, since a canvas of a phone is limited
const FORMATS = [["image/jpeg", "\xff\xd8"], ["image/png", "\x89PNG"], ["image/gif", "GIF8"], ["image/bmp", "BM"], ["image/webp", "RIFF"]];

class ImageError extends Error {} // its message is a sentence for visitors

function text(bytes, start, end) { return String.fromCharCode(...bytes.subarray(start, end)); }
function view(bytes) { return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength); }

// Header of a file: `type`, `orientation` from 1 to 8, and of a JPEG file `width`, `height` and number of `channels`.
function readHeader(bytes) {
    const [type] = FORMATS.find(([, magic]) => text(bytes, 0, magic.length) === magic) ?? [];
    if (!type) throw new ImageError("This file is not a JPEG, PNG, WebP, GIF or BMP image; convert it to JPEG or PNG.");
    const header = {type, exif: null, xmp: ""};
    try {
        if (type === "image/jpeg") readJpeg(bytes, header);
        if (type === "image/png") readPng(bytes, header);
        if (type === "image/webp") readWebp(bytes, header);
    } catch (error) {
        if (!(error instanceof RangeError)) throw error; // the file ends early: the browser decodes it or says so
    }
    return {...header, orientation: readOrientation(header)};
}
function readJpeg(bytes, header) {
    const data = view(bytes);
    for (let at = 2; bytes[at] === 0xff;) {
        const marker = bytes[at + 1];
        if (marker === 0xff || marker === 1 || (marker >= 0xd0 && marker <= 0xd8)) { // fill bytes, markers without a length
            at += marker === 0xff ? 1 : 2;
            continue;
        }
        const end = at + 2 + data.getUint16(at + 2), start = at + 4;
        if (marker === 0xda || marker === 0xd9) return; // pixels
        if (marker === 0xe1 && text(bytes, start, start + 6) === "Exif\0\0") header.exif ??= bytes.subarray(start + 6, end);
        if (marker === 0xe1 && text(bytes, start, start + 5) === "http:") header.xmp += new TextDecoder("latin1").decode(bytes.subarray(start, end));
        if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
            header.height = data.getUint16(start + 1);
            header.width = data.getUint16(start + 3);
            header.channels = bytes[start + 5];
        }
        at = end;
    }
}
function readPng(bytes, header) {
    const data = view(bytes);
    for (let at = 8; at < bytes.length;) {
        const end = at + 12 + data.getUint32(at);
        if (text(bytes, at + 4, at + 8) === "eXIf") header.exif = bytes.subarray(at + 8, end - 4);
        at = end;
    }
}
function readWebp(bytes, header) {
    const data = view(bytes);
    for (let at = 12; at < bytes.length;) {
        const name = text(bytes, at, at + 4), length = data.getUint32(at + 4, true), start = at + 8;
        const prefix = text(bytes, start, start + 6) === "Exif\0\0" ? 6 : 0;
        if (name === "EXIF") header.exif = bytes.subarray(start + prefix, start + length);
        if (name === "XMP ") header.xmp = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
        at = start + length + length % 2;
    }
}
function readOrientation({exif, xmp}) {
    const value = (exif && takeOrientation(exif)) ?? Number(/tiff:Orientation(?:="|>)([0-9])/.exec(xmp)?.[1] ?? 1);
    return value >= 1 && value <= 8 ? value : 1;
}
function takeOrientation(exif) { // and write 1 in its place, since browsers turn images whatever `imageOrientation` is
    const data = view(exif), little = exif[0] === 0x49;
    try {
        const start = data.getUint32(4, little), count = data.getUint16(start, little);
        for (let at = start + 2; at < start + 2 + 12 * count; at += 12) {
            if (data.getUint16(at, little) !== 0x112) continue;
            const bits = data.getUint16(at + 2, little) === 4 ? 32 : 16;
            const value = data[`getUint${bits}`](at + 8, little);
            data[`setUint${bits}`](at + 8, 1, little);
            return value;
        }
    } catch (error) {
        if (!(error instanceof RangeError)) throw error; // damaged tags, which Pillow ignores as well
    }
    return null;
}

// Matrix of a canvas that shows a stored image of this size upright.
function uprightMatrix(orientation, width, height) {
    return [
        [1, 0, 0, 1, 0, 0], [-1, 0, 0, 1, width, 0], [-1, 0, 0, -1, width, height], [1, 0, 0, -1, 0, height],
        [0, 1, 1, 0, 0, 0], [0, 1, -1, 0, height, 0], [0, -1, -1, 0, height, width], [0, -1, 1, 0, 0, width],
    ][orientation - 1];
}
function upright(orientation, width, height) { return orientation > 4 ? [height, width] : [width, height]; }

// Size of the resized image before the crop.
function resizedSize(how, width, height) {
    const [outHeight, outWidth] = how.size;
    if (how.resize === "squash") return [outWidth, outHeight];
    const shorter = Math.min(width, height);
    return [Math.floor(outHeight * width / shorter), Math.floor(outHeight * height / shorter)];
}
// Factor by which the decoder of JPEG divides the sides of a photo, as in `hegraph predict`.
function decodingFactor(how, width, height) {
    const [outWidth, outHeight] = resizedSize(how, width, height);
    const ratio = Math.min(width / outWidth, height / outHeight);
    const limit = Math.min(ratio / OVERSAMPLING, Math.min(width, height) / LEAST_SIDE);
    return [8, 4, 2].find(factor => factor <= limit) ?? 1;
}
function checkSize(width, height) {
    if (width * height > MAX_PIXELS) throw new ImageError(`This image has more than ${MAX_PIXELS / 1e6} million pixels; take a smaller one.`);
    if (Math.max(width, height) > MAX_RATIO * Math.min(width, height)) throw new ImageError("The sides of this image differ too much.");
}

async function decodeReduced(bytes, width, height, factor) { // null if the browser cannot
    if (!("ImageDecoder" in globalThis)) return null;
    const desiredWidth = Math.ceil(width / factor), desiredHeight = Math.ceil(height / factor);
    const decoder = new ImageDecoder({data: bytes, type: "image/jpeg", colorSpaceConversion: "none", desiredWidth, desiredHeight});
    try {
        const {image: frame} = await decoder.decode();
        try {
            if (frame.codedWidth !== desiredWidth || frame.codedHeight !== desiredHeight || !/^(RGB|BGR)/.test(frame.format)) return null;
            const pixels = new Uint8ClampedArray(frame.allocationSize({format: "RGBA"}));
            await frame.copyTo(pixels, {format: "RGBA"});
            return await createImageBitmap(new ImageData(pixels, desiredWidth, desiredHeight));
        } finally { frame.close(); }
    } catch { return null; }
    finally { decoder.close(); }
}

// Decode a file: `bitmap` as stored, divided by `factor`, with `orientation`.
async function decodeFile(file, how) {
    const bytes = new Uint8Array(await file.arrayBuffer()), header = readHeader(bytes), {type, orientation, width, height} = header;
    if (header.channels === 4) throw new ImageError("This JPEG image has CMYK colours, for printing; save it with RGB colours.");
    if (width && height) {
        checkSize(width, height);
        const factor = how.decode === "auto" ? decodingFactor(how, ...upright(orientation, width, height)) : 1;
        const bitmap = factor > 1 ? await decodeReduced(bytes, width, height, factor) : null;
        if (bitmap) return {bitmap, orientation, factor, width, height};
    }
    try {
        const options = {colorSpaceConversion: "none", premultiplyAlpha: "none"};
        const bitmap = await createImageBitmap(new Blob([bytes], {type}), options);
        return {bitmap, orientation, factor: 1, width: bitmap.width, height: bitmap.height};
    } catch { throw new ImageError("This file is damaged: the browser cannot decode it."); }
}

// Input of the model, `[3, H, W]`, from a decoded image.
function prepare({bitmap, orientation, factor, width, height}, how) {
    checkSize(width, height);
    const [fullWidth, fullHeight] = upright(orientation, width, height);
    const [storedWidth, storedHeight] = upright(orientation, bitmap.width, bitmap.height); // reduced, upright
    const [outWidth, outHeight] = resizedSize(how, fullWidth, fullHeight);
    const resizer = new Resizer(storedWidth, storedHeight, fullWidth / factor, fullHeight / factor, outWidth, outHeight, how.interpolation);
    const rows = Math.min(Math.max(Math.floor(STRIP_PIXELS / storedWidth), 1), storedHeight);
    const context = new OffscreenCanvas(storedWidth, rows).getContext("2d", {willReadFrequently: true});
    const [a, b, c, d, e, f] = uprightMatrix(orientation, bitmap.width, bitmap.height);
    context.imageSmoothingEnabled = false;
    context.fillStyle = "white";
    for (let top = 0; top < storedHeight; top += rows) {
        context.setTransform(1, 0, 0, 1, 0, 0);
        context.fillRect(0, 0, storedWidth, rows);
        context.setTransform(a, b, c, d, e, f - top);
        context.drawImage(bitmap, 0, 0);
        resizer.add(top, context.getImageData(0, 0, storedWidth, Math.min(rows, storedHeight - top)).data);
    }
    bitmap.close();
    return normalise(resizer.finish(), outWidth, outHeight, how);
}
function halfToEven(value) { // as Python's round
    const floor = Math.floor(value);
    return value - floor === 0.5 ? floor + floor % 2 : Math.round(value);
}
function normalise(bytes, width, height, how) {
    const [outHeight, outWidth] = how.size, result = new Float32Array(3 * outHeight * outWidth);
    const rounded = how.crop === "floor" ? Math.floor : halfToEven;
    const left = rounded((width - outWidth) / 2), top = rounded((height - outHeight) / 2);
    const tables = how.mean.map((mean, channel) => Float32Array.from({length: 256}, (_, byte) =>
        Math.fround(Math.fround(byte / 255) - Math.fround(mean)) / Math.fround(how.std[channel])));
    let out = 0;
    for (const [channel, table] of tables.entries()) {
        for (let y = top; y < top + outHeight; y++) {
            for (let x = left; x < left + outWidth; x++) result[out++] = table[bytes[(y * width + x) * 3 + channel]];
        }
    }
    return result;
}
