"use strict";
// Signals: windows, resampling, WAV files, spectrograms. Shared by the page and its worker; nothing here touches either.

// Overlapping windows [start, stop) over `length` samples, the same as finallyse.inference.windows.plan.
function plan(length, size, context, grid) {
  const rest = length % grid;
  const shared = Math.ceil((2 * context) / grid) * grid;
  const wholeSize = Math.floor(size / grid) * grid;
  const longestStride = wholeSize - shared;
  if (longestStride < grid) throw new Error("windows of " + size + " samples leave nothing between contexts of " + context);
  if (length <= wholeSize + rest) return [[0, length]];
  const count = Math.ceil((length - rest - shared) / longestStride);
  const stride = Math.ceil((length - rest - shared) / (count * grid)) * grid;
  const own = stride + shared + rest;
  const starts = [];
  for (let start = 0; start < length - own; start += stride) starts.push(start);
  starts.push(length - own);
  return starts.map((start) => [start, start + own]);
}

// Writes the outputs of windows, one after another, into `target`, cross-fading over `fade` samples in the middle of
// each overlap, as finallyse.inference.windows.join does. `windows` are in samples of the output.
class Joiner {
  constructor(target, windows, fade) {
    Object.assign(this, { target, windows, half: Math.floor(fade / 2), index: 0, begin: windows[0][0], tail: null });
  }
  add(piece) {
    const { target, windows, half, index } = this;
    const [start, stop] = windows[index];
    if (this.tail) {
      for (let i = 0; i < 2 * half; i++) {
        const own = piece[this.begin - start + i];
        target[this.begin + i] = this.tail[i] + (own - this.tail[i]) * ((i + 0.5) / (2 * half));
      }
      this.begin += 2 * half;
    }
    const last = index === windows.length - 1;
    const end = last ? stop : Math.floor((stop + windows[index + 1][0]) / 2) - half;
    target.set(piece.subarray(this.begin - start, end - start), this.begin);
    this.tail = last ? null : piece.slice(end - start, end - start + 2 * half);
    this.begin = end;
    this.index += 1;
  }
}

// Samples at another rate, rounded half up, at least 1.
function lengthAt(samples, from, to) {
  return Math.max(1, Math.floor((2 * samples * to + from) / (2 * from)));
}

function besselI0(x) {
  let sum = 1, term = 1;
  for (let k = 1; term > sum * 1e-17; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  return b ? greatestCommonDivisor(b, a % b) : a;
}

// Resampling by a windowed sinc: flat to 0.92 of the lower rate's Nyquist frequency, nothing left at it. The three
// numbers were fitted to the response of soxr at its quality VHQ, with which the command resamples.
const SINC = { halfWidth: 120, beta: 15, cutoff: 0.9564 }; // in samples of the lower rate; of its Nyquist frequency

function resample(x, from, to) {
  const length = lengthAt(x.length, from, to);
  if (from === to) return x;
  const divisor = greatestCommonDivisor(from, to);
  const up = to / divisor, down = from / divisor;
  const scale = Math.min(1, to / from);
  const reach = Math.ceil(SINC.halfWidth / scale);
  const taps = 2 * reach;
  const cutoff = SINC.cutoff * scale;
  const table = new Float64Array(up * taps);
  const norm = besselI0(SINC.beta);
  for (let phase = 0; phase < up; phase++) {
    let sum = 0;
    for (let k = 0; k < taps; k++) {
      const t = k - reach + 1 - phase / up; // from the output sample to the input sample
      const inside = 1 - (t / reach) ** 2;
      const sinc = t === 0 ? cutoff : Math.sin(Math.PI * cutoff * t) / (Math.PI * t);
      const value = inside > 0 ? (sinc * besselI0(SINC.beta * Math.sqrt(inside))) / norm : 0;
      table[phase * taps + k] = value;
      sum += value;
    }
    for (let k = 0; k < taps; k++) table[phase * taps + k] /= sum;
  }
  const y = new Float32Array(length);
  for (let n = 0; n < length; n++) {
    const at = Math.floor((n * down) / up);
    const row = (n * down - at * up) * taps;
    const first = at - reach + 1;
    const low = Math.max(0, -first), high = Math.min(taps, x.length - first);
    let sum = 0;
    for (let k = low; k < high; k++) sum += x[first + k] * table[row + k];
    y[n] = sum;
  }
  return y;
}

function peakOf(x) {
  let peak = 0;
  for (let i = 0; i < x.length; i++) {
    const value = Math.abs(x[i]);
    if (value > peak) peak = value;
  }
  return peak;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

function textAt(bytes, at, count) {
  return String.fromCharCode(...bytes.subarray(at, at + count));
}

const SPEAKERS = { 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3f, 7: 0x70f, 8: 0x63f }; // channel masks by number of channels

// A 16-bit WAV of channels [C][n], turned down as a whole where its peaks would clip. Returns {bytes, gain}.
function encodeWav(channels, rate) {
  const count = channels.length, frames = channels[0].length;
  const peak = Math.max(...channels.map(peakOf));
  const gain = peak > 1 ? 1 / peak : 1;
  const extensible = count > 2, header = extensible ? 68 : 44, size = frames * count * 2;
  const bytes = new ArrayBuffer(header + size);
  const view = new DataView(bytes);
  const name = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  name(0, "RIFF");
  view.setUint32(4, header - 8 + size, true);
  name(8, "WAVEfmt ");
  view.setUint32(16, extensible ? 40 : 16, true);
  view.setUint16(20, extensible ? 0xfffe : 1, true);
  view.setUint16(22, count, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * count * 2, true);
  view.setUint16(32, count * 2, true);
  view.setUint16(34, 16, true);
  if (extensible) {
    view.setUint16(36, 22, true);
    view.setUint16(38, 16, true);
    view.setUint32(40, SPEAKERS[count] || 0, true);
    [1, 0x100000, 0xaa000080, 0x719b3800].forEach((part, i) => view.setUint32(44 + 4 * i, part, true)); // PCM
  }
  name(header - 8, "data");
  view.setUint32(header - 4, size, true);
  const samples = new Int16Array(frames * count); // little-endian, as every browser's machine is
  for (let c = 0; c < count; c++) {
    const x = channels[c];
    for (let n = 0, i = c; n < frames; n++, i += count) {
      samples[i] = Math.max(-32768, Math.min(32767, Math.round(x[n] * gain * 32768)));
    }
  }
  new Int16Array(bytes, header).set(samples);
  return { bytes, gain };
}

// What the header of a WAV says, or null: {rate, channels, bits, float, start, frames}.
function wavHeader(bytes) {
  if (bytes.length < 12 || textAt(bytes, 0, 4) !== "RIFF" || textAt(bytes, 8, 4) !== "WAVE") return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let format = null;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const id = textAt(bytes, at, 4), size = view.getUint32(at + 4, true);
    if (id === "fmt " && at + 24 <= bytes.length) {
      let tag = view.getUint16(at + 8, true);
      if (tag === 0xfffe && size >= 40 && at + 34 <= bytes.length) tag = view.getUint16(at + 32, true);
      format = {
        tag,
        channels: view.getUint16(at + 10, true),
        rate: view.getUint32(at + 12, true),
        block: view.getUint16(at + 20, true),
        bits: view.getUint16(at + 22, true),
      };
    } else if (id === "data" && format) {
      const { tag, channels, rate, block, bits } = format;
      const known = (tag === 1 && [8, 16, 24, 32].includes(bits)) || (tag === 3 && [32, 64].includes(bits));
      if (!known || !channels || !rate || block !== (channels * bits) / 8) return null;
      const available = Math.min(size, bytes.length - at - 8); // a header of an unfinished recording may say 0 or more
      const frames = Math.floor((size === 0 ? bytes.length - at - 8 : available) / block);
      return { rate, channels, bits, float: tag === 3, start: at + 8, frames };
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

// The channels [C][n] of a WAV as floats in [-1, 1].
function decodeWav(bytes, { channels, bits, float, start, frames }) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = bits / 8;
  const reads = {
    8: (at) => (view.getUint8(at) - 128) / 128,
    16: (at) => view.getInt16(at, true) / 32768,
    24: (at) => (view.getUint16(at, true) + view.getInt8(at + 2) * 65536) / 8388608,
    32: (at) => view.getInt32(at, true) / 2147483648,
  };
  const floats = { 32: (at) => view.getFloat32(at, true), 64: (at) => view.getFloat64(at, true) };
  const read = (float ? floats : reads)[bits];
  return Array.from({ length: channels }, (_, c) => {
    const x = new Float32Array(frames);
    for (let n = 0, at = start + c * width; n < frames; n++, at += channels * width) x[n] = read(at);
    return x;
  });
}

// The sample rate of a compressed file by its header, Hz; null where it does not say. Browsers decode to a rate that
// one has to ask for.
function statedRate(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const head = Math.min(bytes.length, 65536);
  const find = (text, from, to) => {
    for (let at = from; at + text.length <= to; at++) if (textAt(bytes, at, text.length) === text) return at;
    return -1;
  };
  if (bytes.length < 64) return null;
  const wav = wavHeader(bytes);
  if (wav) return wav.rate;
  if (textAt(bytes, 0, 4) === "fLaC") return (view.getUint16(18) << 4) | (bytes[20] >> 4);
  if (textAt(bytes, 0, 4) === "OggS") {
    const vorbis = find("\x01vorbis", 0, Math.min(head, 512));
    if (vorbis >= 0) return view.getUint32(vorbis + 12, true);
    const flac = find("fLaC", 0, Math.min(head, 512));
    return flac >= 0 ? (view.getUint16(flac + 18) << 4) | (bytes[flac + 20] >> 4) : null;
  }
  let at = 0;
  if (textAt(bytes, 0, 3) === "ID3") at = 10 + bytes.subarray(6, 10).reduce((size, byte) => size * 128 + byte, 0);
  for (const end = Math.min(bytes.length - 4, at + 4096); at < end; at++) { // MPEG audio, layers 1 to 3
    const version = (bytes[at + 1] >> 3) & 3, layer = (bytes[at + 1] >> 1) & 3, index = (bytes[at + 2] >> 2) & 3;
    if (bytes[at] === 0xff && bytes[at + 1] >= 0xe0 && version !== 1 && layer !== 0 && index !== 3) {
      return [44100, 48000, 32000][index] / { 3: 1, 2: 2, 0: 4 }[version];
    }
  }
  return null;
}

// ---------------------------------------------------------------------------------------------------------------------
// Spectrograms

const FLOOR_DB = -80; // the darkest level, below the loudest

function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    for (let k = 0; k < size / 2; k++) {
      const c = Math.cos((-2 * Math.PI * k) / size), s = Math.sin((-2 * Math.PI * k) / size);
      for (let a = k, b = k + size / 2; a < n; a += size, b += size) {
        const x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x;
        im[b] = im[a] - y;
        re[a] += x;
        im[a] += y;
      }
    }
  }
}

const toMel = (hz) => 2595 * Math.log10(1 + hz / 700);
const toHz = (mel) => 700 * (10 ** (mel / 2595) - 1);

// Levels in dB [rows * columns], from the top row, of the mean of the channels, over 0 to topHz on a mel scale; windows
// of 32 ms, one for each column. 0 dB is a sine of full scale.
function spectrogram(channels, rate, topHz, columns, rows) {
  const length = channels[0].length;
  const size = Math.round(0.032 * rate);
  let n = 1;
  while (n < size) n <<= 1;
  const window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
  const toPower = 4 / window.reduce((a, b) => a + b, 0) ** 2;
  const edges = Array.from({ length: rows + 1 }, (_, r) => (toHz((toMel(topHz) * r) / rows) * n) / rate);
  const levels = new Float32Array(rows * columns);
  const re = new Float64Array(n), im = new Float64Array(n), sums = new Float64Array(n / 2 + 1);
  const upTo = (edge) => {
    const at = Math.min(n / 2, Math.max(0, edge)), whole = Math.floor(at);
    return sums[whole] + (whole < n / 2 ? (at - whole) * (sums[whole + 1] - sums[whole]) : 0);
  };
  for (let column = 0; column < columns; column++) {
    const start = Math.floor((Math.max(0, length - 1) * column) / (columns - 1)) - (size >> 1);
    re.fill(0);
    im.fill(0);
    for (const x of channels) {
      for (let i = Math.max(0, -start); i < size && start + i < length; i++) re[i] += x[start + i] * window[i];
    }
    fft(re, im);
    const factor = toPower / channels.length ** 2;
    for (let k = 0; k < n / 2; k++) sums[k + 1] = sums[k] + (re[k + 1] ** 2 + im[k + 1] ** 2) * factor;
    for (let row = 0; row < rows; row++) {
      const mean = (upTo(edges[row + 1]) - upTo(edges[row])) / (edges[row + 1] - edges[row]);
      levels[(rows - 1 - row) * columns + column] = 10 * Math.log10(Math.max(mean, 1e-20));
    }
  }
  return levels;
}
