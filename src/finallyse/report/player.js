"use strict";
// Players that switch between signals at the same position. Without this script each signal has the browser's controls.
document.documentElement.classList.add("js");
let sounding = null; // the current player: one at a time

for (const root of document.querySelectorAll(".player")) mount(root);

// Bring the controls of a player in the page to life.
function mount(root) {
  const tracks = [...root.querySelectorAll(".track")].map((element) => ({
    button: element.querySelector(".pick"),
    image: element.querySelector(".spectrogram"),
    audio: document.getElementById(element.dataset.audio),
  }));
  const seek = root.querySelector(".seek");
  const time = root.querySelector(".time");
  const toggle = root.querySelector(".toggle");
  const loop = root.querySelector(".loop");
  const seconds = Number(root.dataset.seconds);
  // The play button starts with the output, which matters most.
  let current = tracks.find((t) => t.button.parentElement.classList.contains("enhanced")) || tracks[0];
  let frame = 0;
  const player = { pause };

  function show(position) {
    root.style.setProperty("--position", Math.min(1, position / seconds));
    seek.value = position;
    seek.setAttribute("aria-valuetext", position.toFixed(1) + " of " + seconds.toFixed(1) + " seconds");
    time.textContent = position.toFixed(1) + " / " + seconds.toFixed(1) + " s";
  }
  function mark(playing) {
    root.classList.toggle("playing", playing);
    for (const t of tracks) t.button.setAttribute("aria-pressed", String(playing && t === current));
  }
  function follow() {
    show(current.audio.currentTime);
    frame = requestAnimationFrame(follow);
  }
  function play(position) {
    if (sounding && sounding !== player) sounding.pause();
    sounding = player;
    // All signals of a player are fetched at its first use, so that switching is immediate.
    for (const t of tracks) if (t.audio.preload !== "auto") t.audio.preload = "auto";
    current.audio.currentTime = position >= seconds - 0.02 ? 0 : position;
    root.classList.add("started");
    mark(true);
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(follow);
    current.audio.play().catch((error) => {
      if (error.name !== "AbortError") pause(); // a quick switch aborts the earlier play(); anything else ends it
    });
  }
  function pause() {
    cancelAnimationFrame(frame);
    current.audio.pause();
    mark(false);
  }
  function choose(track) {
    const playing = root.classList.contains("playing");
    if (playing && track === current) return pause();
    const position = playing ? current.audio.currentTime : Number(seek.value);
    current.audio.pause();
    current = track;
    play(position);
  }
  for (const t of tracks) {
    t.button.addEventListener("click", () => choose(t));
    t.image.addEventListener("click", (event) => {
      const box = t.image.getBoundingClientRect();
      current.audio.pause();
      current = t;
      play(((event.clientX - box.left) / box.width) * seconds);
    });
    t.audio.addEventListener("ended", () => {
      if (t !== current || sounding !== player) return;
      if (loop.getAttribute("aria-pressed") === "true") return play(0);
      pause();
      show(0);
    });
  }
  toggle.addEventListener("click", () => (root.classList.contains("playing") ? pause() : play(Number(seek.value))));
  loop.addEventListener("click", () =>
    loop.setAttribute("aria-pressed", String(loop.getAttribute("aria-pressed") !== "true")));
  seek.addEventListener("input", () => {
    root.classList.add("started");
    const position = Number(seek.value);
    if (root.classList.contains("playing")) current.audio.currentTime = position;
    show(position);
  });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const index = "123456789".indexOf(event.key);
    if (index >= 0 && event.key && index < tracks.length) {
      event.preventDefault();
      choose(tracks[index]);
    } else if (event.key === " " && event.target === seek) {
      event.preventDefault();
      toggle.click();
    }
  });
}
