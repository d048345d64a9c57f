"use strict";
// The page: takes recordings, has the worker or the server enhance them, shows the results. The state is in the document.
const config = JSON.parse(document.getElementById("config").textContent);
const COLUMNS = 960, ROWS = 192; // of a spectrogram
const MOST_SAMPLES = 60e6; // of all channels: each is held as a float before and after, and twice as 16 bits
const MOST_HELD = 120e6; // of all results in the page
const MOST_BYTES = 1 << 30; // of a file
const $ = (id) => document.getElementById(id);

class Told extends Error {} // what the visitor is told as it is
class Cancelled extends Error {}

// ---------------------------------------------------------------------------------------------------------------------
// What is embedded

// A module with a 128-bit constant, which only engines with SIMD accept.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

function missingFeature() {
  const simd = typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD));
  if (!simd || typeof DecompressionStream !== "function" || typeof Worker !== "function") {
    return "This browser lacks WebAssembly SIMD, with which the network computes. Use Chrome or Edge 91, Firefox 114, Safari 16.4, or later.";
  }
  return null;
}

// The content of an embedded file. Its gzip checksum tells if it is damaged.
async function embedded(id, what) {
  try {
    const text = $(id).textContent.trim();
    if (!text) throw new Error("empty");
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  } catch (error) {
    throw new Told("The " + what + " in this page is missing or damaged (" + error.message + "). Load the page again, or ask for a new copy of it.");
  }
}

let worker = null; // a promise of the worker, ready
let discard = () => {}; // ends what the worker is doing, with an error

function startWorker() {
  const text = async (id, what) => new TextDecoder().decode(await embedded(id, what));
  const starting = (async () => {
    const [library, runtime, graph] = await Promise.all([
      text("library", "program"), embedded("runtime", "program"), embedded("graph", "network"),
    ]);
    const source = [library, $("signal").textContent, $("worker").textContent];
    const url = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
    const made = new Worker(url);
    try {
      await ask(made, { kind: "load", runtime, graph, described: config.network }, [runtime, graph]);
    } catch (error) {
      made.terminate();
      if (error instanceof Cancelled) throw error;
      throw new Told("The network cannot be loaded: " + error.message.split("\n")[0] + ". Load the page again.");
    } finally {
      URL.revokeObjectURL(url);
    }
    return made;
  })();
  starting.catch(() => { if (worker === starting) worker = null; });
  return starting;
}

// Send a message and wait for its answer.
function ask(to, message, transfer, onProgress = () => {}) {
  return new Promise((resolve, reject) => {
    discard = () => {
      to.terminate();
      worker = null;
      reject(new Cancelled());
    };
    to.onmessage = ({ data }) => {
      if (data.kind === "progress") onProgress(data);
      else if (data.kind === "error") reject(new Error(data.message));
      else resolve(data);
    };
    to.onerror = (event) => {
      event.preventDefault();
      worker = null;
      to.terminate();
      reject(new Error(event.message || "the worker could not be started"));
    };
    to.postMessage(message, transfer);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

function clock(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(s / 60) % 60, hours = Math.floor(s / 3600);
  const two = (n) => String(n).padStart(2, "0");
  return hours ? hours + ":" + two(minutes) + ":" + two(s % 60) : minutes + ":" + two(s % 60);
}

function checkLength(name, seconds, rate, channels, held) {
  const most = MOST_SAMPLES / rate / channels;
  if (seconds > most) {
    throw new Told(name + ": " + clock(seconds) + " is too long for this page, which holds recordings in memory: at most "
      + clock(most) + " at " + rate / 1000 + " kHz" + (channels > 1 ? " and " + channels + " channels" : "")
      + ". The command `finallyse enhance` has no limit.");
  }
  if (held + seconds * rate * channels > MOST_HELD) {
    throw new Told(name + ": this page holds no more audio in memory. Remove a result, then choose it again.");
  }
}

function heldSamples() {
  return [...document.querySelectorAll(".result")].reduce((sum, e) => sum + Number(e.dataset.samples), 0);
}

// The length in seconds that the browser tells without decoding; null if it cannot.
function statedSeconds(blob) {
  return new Promise((resolve) => {
    const audio = new Audio();
    const url = URL.createObjectURL(blob);
    const end = (seconds) => {
      clearTimeout(timer);
      audio.removeAttribute("src");
      URL.revokeObjectURL(url);
      resolve(Number.isFinite(seconds) && seconds > 0 ? seconds : null);
    };
    const timer = setTimeout(() => end(null), 5000);
    audio.onloadedmetadata = () => end(audio.duration);
    audio.onerror = () => end(null);
    audio.preload = "metadata";
    audio.src = url;
  });
}

// A file's channels [C][n] and its rate.
async function read(file) {
  if (file.size === 0) throw new Told(file.name + ": the file is empty.");
  if (file.size > MOST_BYTES) throw new Told(file.name + ": larger than 1 GB, which is too much for this page. The command `finallyse enhance` has no limit.");
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch (error) {
    throw new Told(file.name + ": cannot be read (" + error.message + ").");
  }
  const wav = wavHeader(bytes);
  let channels, rate;
  if (wav) { // as it is, whatever the browser would make of it
    checkLength(file.name, wav.frames / wav.rate, wav.rate, wav.channels, heldSamples());
    ({ rate } = wav);
    channels = decodeWav(bytes, wav);
  } else {
    ({ channels, rate } = await decode(file, bytes));
  }
  if (!channels[0].length) throw new Told(file.name + ": has no samples.");
  for (const channel of channels) {
    if (!Number.isFinite(peakOf(channel)) || channel.some(Number.isNaN)) throw new Told(file.name + ": contains samples that are not finite numbers.");
  }
  return { name: file.name, channels, rate };
}

async function decode(file, bytes) {
  const stated = statedRate(bytes);
  const rate = stated && stated >= 8000 && stated <= 96000 ? stated : 48000;
  const seconds = await statedSeconds(file);
  if (seconds) checkLength(file.name, seconds, rate, 1, heldSamples());
  let buffer;
  try {
    buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer);
  } catch {
    throw new Told(file.name + ": this browser finds no audio that it can read in it. WAV, MP3, FLAC, Ogg and M4A usually work.");
  }
  checkLength(file.name, buffer.duration, rate, buffer.numberOfChannels, heldSamples());
  return { rate, channels: Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c)) };
}

// ---------------------------------------------------------------------------------------------------------------------
// Progress and errors

let shown = null; // what the progress bar follows: {label, at, done, total, next, perSample}
let said = 0;

function say(text) {
  $("said").textContent = text;
  said = performance.now();
}

function follow() {
  if (!shown) return;
  const { label, at, done, total, next, perSample } = shown;
  const waiting = queue.length ? " · " + queue.length + " more waiting" : "";
  if (total) {
    // Within a window the bar moves at the speed that was measured.
    const within = Math.min(next * 0.98, (performance.now() - at) / perSample);
    const share = Math.min(1, (done + within) / total);
    const left = Math.max(0, (total - done - within) * perSample) / 1000;
    $("bar").value = share;
    $("doing").textContent = label;
    const text = Math.floor(100 * share) + " %, " + (left < 1.5 ? "almost done" : "about " + clock(left) + " left");
    $("left").textContent = text + waiting;
    if (performance.now() - said > 10000) say(label + ": " + text);
  } else {
    $("bar").removeAttribute("value");
    $("doing").textContent = label;
    $("left").textContent = waiting.replace(" · ", "");
  }
}
setInterval(follow, 100);

function showProgress(label, progress = {}) {
  if (!shown || shown.label !== label) say(label);
  shown = { label, at: performance.now(), ...progress };
  $("progress").hidden = false;
  follow();
}

function hideProgress() {
  shown = null;
  $("progress").hidden = true;
}

function showError(text, keep) {
  const item = document.createElement("li");
  const line = document.createElement("span");
  line.textContent = text;
  item.append(line);
  if (keep) item.append(keep);
  const close = document.createElement("button");
  close.type = "button";
  close.className = "quiet";
  close.textContent = "Dismiss";
  close.setAttribute("aria-label", "Dismiss: " + text);
  close.addEventListener("click", () => {
    item.remove();
    $("choose").focus();
  });
  item.append(close);
  $("errors").append(item);
}

// ---------------------------------------------------------------------------------------------------------------------
// The queue

const queue = []; // of {name, file} or {name, channels, rate}
let busy = false;
let request = null; // to the server, to cancel it
let cancelled = false; // the item that is being worked on

function take(items) {
  if (!items.length) return;
  if (!busy) $("errors").replaceChildren();
  queue.push(...items);
  if (!busy) work();
}

async function work() {
  busy = true;
  document.documentElement.classList.add("busy");
  while (queue.length) {
    const item = queue.shift();
    cancelled = false;
    try {
      showProgress("Reading " + item.name);
      const onServer = config.server && $("on-server").checked;
      const recording = item.file ? await read(item.file) : item;
      if (cancelled) throw new Cancelled();
      const result = await (onServer ? enhanceThere(recording, item.file) : enhanceHere(recording));
      addResult(recording, result);
    } catch (error) {
      if (error instanceof Cancelled) say("Cancelled: " + item.name);
      else {
        const text = error instanceof Told ? error.message : item.name + ": " + error.message.split("\n")[0];
        showError(text);
      }
      // A recording that was made here is nowhere else.
      if (!item.file) keepRecording(item);
    }
  }
  hideProgress();
  document.documentElement.classList.remove("busy");
  busy = false;
}

function keepRecording({ name, channels, rate }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([encodeWav(channels, rate).bytes], { type: "audio/wav" }));
  link.download = name + ".wav";
  link.textContent = "Save the recording";
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Try again";
  again.addEventListener("click", () => {
    again.closest("li").remove();
    take([{ name, channels, rate }]);
  });
  const both = document.createElement("span");
  both.append(again, " ", link);
  showError(name + " is not enhanced, and is kept here until this page is closed.", both);
}

async function enhanceHere({ name, channels, rate }) {
  showProgress("Loading the network");
  worker = worker || startWorker();
  const ready = await worker;
  if (cancelled) throw new Cancelled();
  const seconds = channels[0].length / rate;
  showProgress("Enhancing " + name);
  const message = { kind: "enhance", channels, rate, columns: COLUMNS, rows: ROWS };
  const answer = await ask(ready, message, [], (progress) => showProgress("Enhancing " + name, progress));
  const speed = seconds / answer.elapsed;
  return { ...answer, where: "in this browser, " + (speed < 10 ? speed.toFixed(1) : Math.round(speed)) + " times real time" };
}

async function enhanceThere({ name, channels, rate }, file) {
  showProgress("Waiting for the server: " + name);
  request = new AbortController();
  const started = performance.now();
  let response;
  try {
    const body = file || new Blob([encodeWav(channels, rate).bytes], { type: "audio/wav" });
    response = await fetch("enhance", { method: "POST", body, headers: { Accept: "audio/wav" }, signal: request.signal });
    if (!response.ok) {
      const told = await response.json().catch(() => ({ error: "the server answers " + response.status }));
      const retry = response.headers.get("Retry-After");
      throw new Told(name + ": " + told.error + (retry ? " (try again in " + retry + " s)" : ""));
    }
    const after = await response.arrayBuffer();
    const bytes = new Uint8Array(after);
    const header = wavHeader(bytes);
    if (!header) throw new Told(name + ": the server's answer is not a WAV.");
    showProgress("Drawing " + name);
    worker = worker || startWorker();
    const message = {
      kind: "show", input: channels, rate, output: decodeWav(bytes, header), outRate: header.rate, columns: COLUMNS, rows: ROWS,
    };
    const answer = await ask(await worker, message, []);
    const elapsed = (performance.now() - started) / 1000;
    return { ...answer, after, elapsed, where: "on the server, in " + clock(elapsed) };
  } catch (error) {
    if (error.name === "AbortError") throw new Cancelled();
    if (error instanceof TypeError) throw new Told(name + ": the server cannot be reached. Is it still running?");
    throw error;
  } finally {
    request = null;
  }
}

$("cancel").addEventListener("click", () => {
  cancelled = true;
  if (request) request.abort();
  discard();
  $("choose").focus();
});

// ---------------------------------------------------------------------------------------------------------------------
// Results

// matplotlib's magma at nine points, between which it is nearly linear.
const MAGMA = [
  [0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191],
];

function draw(canvas, levels, loudest) {
  canvas.width = COLUMNS;
  canvas.height = ROWS;
  const context = canvas.getContext("2d");
  const image = context.createImageData(COLUMNS, ROWS);
  for (let i = 0; i < levels.length; i++) {
    const at = Math.max(0, Math.min(1, 1 - (levels[i] - loudest) / FLOOR_DB)) * 8;
    const low = Math.min(7, Math.floor(at));
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = MAGMA[low][c] + (at - low) * (MAGMA[low + 1][c] - MAGMA[low][c]);
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

let results = 0;

function addResult({ name, channels, rate }, result) {
  results += 1;
  const stem = name.replace(/(.)\.[a-z][a-z0-9]{0,4}$/i, "$1");
  const seconds = channels[0].length / rate;
  const element = $("result").content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  element.dataset.samples = channels.length * channels[0].length;
  const player = find(".player");
  player.dataset.seconds = seconds.toFixed(3);
  player.setAttribute("aria-label", "Player: " + name);
  find(".utterance").textContent = name;
  const many = channels.length === 1 ? "mono" : channels.length === 2 ? "stereo" : channels.length + " channels";
  const facts = [clock(seconds), rate / 1000 + " kHz", many, result.where];
  if (result.gain < 1) facts.push((-20 * Math.log10(result.gain)).toFixed(1) + " dB lower, or it would clip");
  for (const fact of facts) find(".facts").append(Object.assign(document.createElement("span"), { textContent: fact }));
  const urls = [result.before, result.after].map((bytes) => URL.createObjectURL(new Blob([bytes], { type: "audio/wav" })));
  const loudest = Math.max(-60, ...result.pictures.map((levels) => levels.reduce((a, b) => Math.max(a, b), -200)));
  const topKhz = result.topHz / 1000;
  [...element.querySelectorAll(".track")].forEach((track, index) => {
    const label = ["Before", "After"][index];
    const audio = track.querySelector("audio");
    audio.id = track.dataset.audio = "sound-" + results + "-" + index;
    audio.src = urls[index];
    audio.setAttribute("aria-label", label + ", " + name);
    track.querySelector(".pick").setAttribute("aria-label", "Play " + label.toLowerCase() + ", " + name);
    const canvas = track.querySelector("canvas");
    canvas.setAttribute("aria-label", "Spectrogram " + label.toLowerCase() + " enhancing, " + name + ": 0 to " + topKhz + " kHz, " + seconds.toFixed(1) + " s");
    draw(canvas, result.pictures[index], loudest);
    track.querySelector(".top").textContent = topKhz + " kHz";
    for (const hz of [1000, 4000, 8000].filter((hz) => hz < result.topHz * 0.8)) {
      const mark = Object.assign(document.createElement("span"), { className: "hz", textContent: hz / 1000 });
      mark.style.bottom = (100 * toMel(hz)) / toMel(result.topHz) + "%";
      track.querySelector(".spectrogram").append(mark);
    }
  });
  find(".seek").max = seconds.toFixed(2);
  find(".time").textContent = "0.0 / " + seconds.toFixed(1) + " s";
  const link = find(".download");
  link.href = urls[1];
  link.download = stem + ".enhanced.wav";
  link.setAttribute("aria-label", "Download " + link.download);
  find(".size").textContent = "WAV, " + (result.after.byteLength / 1e6).toFixed(1) + " MB";
  find(".remove").setAttribute("aria-label", "Remove " + name);
  find(".remove").addEventListener("click", () => {
    element.querySelectorAll("audio").forEach((audio) => audio.pause());
    urls.forEach((url) => URL.revokeObjectURL(url));
    element.remove();
    $("results").hidden = !document.querySelector(".result");
    $("choose").focus();
    say("Removed " + name);
  });
  $("list").prepend(element);
  $("results").hidden = false;
  mount(player);
  say("Enhanced " + name + ". Its player is under Results.");
  element.scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  take([...$("file").files].map((file) => ({ name: file.name, file })));
  $("file").value = ""; // the same file can be chosen again
});
let depth = 0; // of nested dragenter events
const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth += 1;
  document.documentElement.classList.add("dragging");
});
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  if (!depth) document.documentElement.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  document.documentElement.classList.remove("dragging");
  take([...event.dataTransfer.files].map((file) => ({ name: file.name, file })));
});
addEventListener("paste", (event) => take([...event.clipboardData.files].map((file) => ({ name: file.name, file }))));

// ---------------------------------------------------------------------------------------------------------------------
// The microphone

let recording = null; // {stream, context, pieces, samples, level}

// Where the samples of a source come out, as they are: a function that takes the function that is to be given them.
async function tap(context, source) {
  if (self.origin === "null") {
    // A page that is opened from a disk is not allowed worklets. The older node runs with the page; so its buffer is long.
    const node = context.createScriptProcessor(16384, 1, 1);
    source.connect(node);
    node.connect(context.destination); // or it is not called; its output is silence
    return (take) => { node.onaudioprocess = ({ inputBuffer }) => take(inputBuffer.getChannelData(0).slice()); };
  }
  const url = URL.createObjectURL(new Blob([$("recorder").textContent], { type: "text/javascript" }));
  await context.audioWorklet.addModule(url);
  URL.revokeObjectURL(url);
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  source.connect(node);
  return (take) => { node.port.onmessage = ({ data }) => take(data); };
}

async function record() {
  $("record").disabled = true;
  let stream = null, context = null;
  try {
    if (!navigator.mediaDevices) {
      throw new Told("This page cannot use the microphone here: browsers allow it at https:// and at localhost only. Choose a file instead.");
    }
    // The browser's own noise suppression would do the network's work first, and worse.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      const why = {
        NotAllowedError: "The microphone is not allowed. Allow it in the browser's settings for this page, or choose a file.",
        NotFoundError: "No microphone was found. Plug one in, or choose a file.",
        NotReadableError: "The microphone cannot be opened. Does another program use it?",
      };
      throw new Told(why[error.name] || "The microphone cannot be used (" + error.message + ").");
    }
    context = new AudioContext();
    recording = { stream, context, pieces: [], samples: 0, level: 0, rate: context.sampleRate };
    (await tap(context, context.createMediaStreamSource(stream)))((piece) => {
      if (!recording) return;
      recording.pieces.push(piece);
      recording.samples += piece.length;
      recording.level = Math.max(recording.level * 0.96, peakOf(piece));
      if (recording.samples >= MOST_SAMPLES) stop(true);
    });
    stream.getAudioTracks()[0].addEventListener("ended", () => recording && stop(true)); // unplugged
    document.documentElement.classList.add("recording");
    $("record").querySelector(".label").textContent = "Stop and enhance";
    say("Recording");
  } catch (error) {
    if (stream) stream.getTracks().forEach((track) => track.stop());
    if (context) context.close();
    recording = null;
    showError(error instanceof Told ? error.message : "The microphone cannot be used (" + error.message + ").");
  } finally {
    $("record").disabled = false;
  }
}

function stop(keep) {
  const { stream, context, pieces, samples, rate } = recording;
  recording = null;
  stream.getTracks().forEach((track) => track.stop());
  context.close();
  document.documentElement.classList.remove("recording");
  $("record").querySelector(".label").textContent = "Record";
  if (!keep) return say("Recording discarded");
  if (!samples) return showError("The microphone gave no samples. Is it muted?");
  const channel = new Float32Array(samples);
  pieces.reduce((at, piece) => (channel.set(piece, at), at + piece.length), 0);
  const now = new Date(), two = (n) => String(n).padStart(2, "0");
  const name = "Recording " + now.getFullYear() + "-" + two(now.getMonth() + 1) + "-" + two(now.getDate()) + " "
    + two(now.getHours()) + "." + two(now.getMinutes()) + "." + two(now.getSeconds());
  take([{ name, channels: [channel], rate }]);
}

$("record").addEventListener("click", () => (recording ? stop(true) : record()));
$("discard").addEventListener("click", () => {
  if (recording) stop(false);
  $("record").focus();
});
setInterval(() => {
  if (!recording) return;
  $("elapsed").textContent = clock(recording.samples / recording.rate);
  const db = 20 * Math.log10(Math.max(recording.level, 1e-3));
  $("level").style.setProperty("--level", Math.max(0, 1 + db / 60));
  $("level").classList.toggle("loud", recording.level > 0.98);
}, 80);
addEventListener("beforeunload", (event) => {
  if (recording || busy) event.preventDefault(); // asks before work is lost
});

// ---------------------------------------------------------------------------------------------------------------------
// Start

if (config.server) {
  $("where").hidden = false;
  const privacy = () => {
    $("privacy").textContent = $("on-server").checked
      ? "Recordings are sent to " + location.host + ", which deletes them with its answer."
      : config.privacy;
  };
  $("where").addEventListener("change", privacy);
  privacy();
}
const lacking = missingFeature();
if (lacking) {
  showError(lacking);
  $("choose").disabled = $("record").disabled = true;
} else {
  // The network loads while the visitor looks for a file; an error shows when it is needed.
  const early = () => { worker = worker || startWorker(); };
  (window.requestIdleCallback || ((run) => setTimeout(run, 200)))(early);
}
document.documentElement.classList.add("ready");
