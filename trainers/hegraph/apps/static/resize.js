// Pillow's resizing of 8-bit images (its libImaging/Resample.c): a horizontal and then a vertical pass with antialiasing,
// each with integer weights and rounded to 8 bits. Equal to Pillow in every bit.
const WEIGHT_BITS = 22;
const HALF = 2 ** (WEIGHT_BITS - 1);
const FILTERS = {
    bilinear: {support: 1, weight: x => Math.max(1 - Math.abs(x), 0)},
    bicubic: {support: 2, weight: cubic},
};
function cubic(signed) { // a = -0.5
    const x = Math.abs(signed);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// For each of `outSize` pixels between `start` and `end`: its first input pixel, and the weights from there on.
function resizeWeights(filter, inSize, start, end, outSize) {
    const scale = (end - start) / outSize;
    const stretch = Math.max(scale, 1);
    const support = filter.support * stretch;
    return Array.from({length: outSize}, (_, out) => {
        const center = start + (out + 0.5) * scale;
        const first = Math.max(Math.trunc(center - support + 0.5), 0);
        const last = Math.min(Math.trunc(center + support + 0.5), inSize);
        const weights = Array.from({length: last - first}, (_, i) => filter.weight((i + first - center + 0.5) * (1 / stretch)));
        const sum = weights.reduce((total, weight) => total + weight, 0);
        return {first, weights: Int32Array.from(weights, weight => roundWeight(sum ? weight / sum : weight))};
    });
}
function roundWeight(weight) { return Math.trunc(weight * 2 ** WEIGHT_BITS + (weight < 0 ? -0.5 : 0.5)); }

// One pass over rows or columns: `taps` weights, input bytes from `from` on with a distance of `step`.
function weighted(bytes, from, step, weights) {
    let sum = HALF;
    for (let i = 0; i < weights.length; i++, from += step) sum += bytes[from] * weights[i];
    return sum >> WEIGHT_BITS; // Uint8ClampedArray clips it
}

// Resizer of an image that arrives in strips of rows, from top to bottom.
class Resizer {
    // `width`, `height`: size of the image. `boxWidth`, `boxHeight`: size of its part from the top left corner on, which
    // may end inside a pixel. `outWidth`, `outHeight`: size of the result. `interpolation`: a key of FILTERS.
    constructor(width, height, boxWidth, boxHeight, outWidth, outHeight, interpolation) {
        const filter = FILTERS[interpolation];
        this.columns = resizeWeights(filter, width, 0, boxWidth, outWidth);
        this.lines = resizeWeights(filter, height, 0, boxHeight, outHeight);
        this.width = width;
        this.narrow = new Uint8ClampedArray(height * outWidth * 3); // after the horizontal pass
    }
    // Add rows from `top` on; `bytes` are RGBA.
    add(top, bytes) {
        const rows = bytes.length / (4 * this.width);
        let out = top * this.columns.length * 3;
        for (let row = 0; row < rows; row++) {
            for (const {first, weights} of this.columns) {
                const from = (row * this.width + first) * 4;
                for (let channel = 0; channel < 3; channel++) this.narrow[out++] = weighted(bytes, from + channel, 4, weights);
            }
        }
    }
    // RGB bytes of the result.
    finish() {
        const stride = this.columns.length * 3;
        const result = new Uint8ClampedArray(this.lines.length * stride);
        let out = 0;
        for (const {first, weights} of this.lines) {
            for (let column = 0; column < stride; column++) result[out++] = weighted(this.narrow, first * stride + column, stride, weights);
        }
        return result;
    }
}
