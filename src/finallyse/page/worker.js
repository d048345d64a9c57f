"use strict";
// The worker: holds the network, and enhances one recording at a time. The page ends it to cancel.
let session = null, network = null;
let perSample = null; // ms that a sample takes, once it is known

onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") await load(data);
    else if (data.kind === "enhance") await enhance(data);
    else finish(data.input, data.rate, data.output, data.outRate, data.columns, data.rows, {});
  } catch (error) {
    postMessage({ kind: "error", phase: data.kind, message: String((error && error.message) || error) });
  }
};

async function load({ runtime, graph, described }) {
  const ort = await self.ortReady;
  ort.env.wasm.wasmBinary = runtime;
  ort.env.wasm.numThreads = 1; // threads would need headers that a static page or a file cannot have
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(new Uint8Array(graph), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "all",
  });
  network = described;
  postMessage({ kind: "ready" });
}

// float32 [n] at the network's input rate, n a multiple of its alignment -> [n * factor].
async function forward(wav) {
  const { Tensor } = await self.ortReady;
  const { enhanced } = await session.run({ wav: new Tensor("float32", wav, [1, 1, wav.length]) });
  if (!Number.isFinite(enhanced.data.reduce((sum, value) => sum + value, 0))) {
    throw new Error("the network's output is not finite");
  }
  return enhanced.data;
}

// A signal with zeros up to the next multiple of the network's alignment.
function filledUp(wav) {
  const filled = new Float32Array(Math.ceil(wav.length / network.alignment) * network.alignment);
  filled.set(wav);
  return filled;
}

async function enhance({ channels, rate, columns, rows }) {
  const started = performance.now();
  const factor = network.output_rate / network.input_rate;
  const length = lengthAt(channels[0].length, rate, network.input_rate);
  const filled = Math.ceil(length / network.alignment) * network.alignment;
  const outRate = Math.max(rate, network.output_rate);
  const windows = plan(filled, network.window, network.context, network.grid);
  const scaled = windows.map(([start, stop]) => [start * factor, stop * factor]);
  const size = windows[0][1] - windows[0][0];
  const total = size * windows.length * channels.length;
  let done = 0, computing = 0;
  if (perSample === null) {
    // A second of the recording tells how fast the network is here, before the first window is done.
    const second = channels[0].subarray(0, Math.min(channels[0].length, rate));
    const sample = filledUp(resample(second, rate, network.input_rate));
    const before = performance.now();
    await forward(sample);
    perSample = (performance.now() - before) / sample.length;
  }
  const tell = () => postMessage({ kind: "progress", done, total, next: size, perSample });
  tell();
  const output = [];
  for (const channel of channels) {
    let x = resample(channel, rate, network.input_rate);
    const peak = peakOf(x);
    const gain = network.peak !== null && peak > 1e-30 ? network.peak / peak : 1;
    x = filledUp(gain === 1 ? x : x.map((value) => value * gain));
    let y = new Float32Array(filled * factor);
    const joiner = new Joiner(y, scaled, Math.floor(network.fade_s * network.output_rate));
    for (const [start, stop] of windows) {
      const began = performance.now();
      joiner.add(await forward(x.slice(start, stop)));
      computing += performance.now() - began;
      done += size;
      perSample = computing / done;
      tell();
    }
    y = y.subarray(0, length * factor);
    if (gain !== 1) for (let i = 0; i < y.length; i++) y[i] /= gain;
    let final = resample(y, network.output_rate, outRate);
    const wanted = lengthAt(channel.length, rate, outRate);
    if (final.length !== wanted) {
      const fitted = new Float32Array(wanted);
      fitted.set(final.subarray(0, wanted));
      final = fitted;
    }
    output.push(final);
  }
  const elapsed = (performance.now() - started) / 1000;
  finish(channels, rate, output, outRate, columns, rows, { elapsed, computing: computing / 1000 });
}

// Both signals as files and as pictures.
function finish(input, rate, output, outRate, columns, rows, facts) {
  const topHz = Math.max(rate, outRate) / 2;
  const pictures = [spectrogram(input, rate, topHz, columns, rows), spectrogram(output, outRate, topHz, columns, rows)];
  const before = encodeWav(input, rate), after = encodeWav(output, outRate);
  postMessage(
    { kind: "done", ...facts, before: before.bytes, after: after.bytes, gain: after.gain, outRate, topHz, pictures },
    [before.bytes, after.bytes, ...pictures.map((picture) => picture.buffer)],
  );
}
