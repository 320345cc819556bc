"use strict";
// Everything works without this file; it adds keys, the clock, enlarging and copying.

const typing = (target) => target.matches("input:not([type=radio]):not([type=checkbox]), textarea");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing(event.target)) return;
  const dialog = document.getElementById("zoom");
  if (dialog && dialog.open) {
    if (event.key === "+" || event.key === "-") step(dialog, event.key === "+" ? 1 : -1);
    if (event.key.toLowerCase() === "z") dialog.close();
    return;
  }
  if (event.key.toLowerCase() === "z") {
    const tile = document.querySelector("a.tile:focus") || document.querySelector("[data-zoom]");
    if (tile) enlarge(tile);
    return;
  }
  // Within a scale, digits choose on that scale.
  if (/^[1-9]$/.test(event.key) && event.target.matches("input[type=radio]")) {
    const point = document.getElementsByName(event.target.name)[Number(event.key) - 1];
    if (point) {
      point.focus();
      point.click();
    }
    return;
  }
  // A focused radio button keeps its arrows, a focused link or button its Enter.
  if (event.key.startsWith("Arrow") && event.target.matches("input")) return;
  if (event.key === "Enter" && event.target.matches("a, button")) return;
  for (const element of document.querySelectorAll("[data-key]")) {
    const keys = element.dataset.key.split(" ");
    if (keys.includes(event.key) || keys.includes(event.key.toLowerCase())) {
      event.preventDefault();
      element.focus();
      element.click();
      return;
    }
  }
});

// A second click while the first is on its way sends nothing.
for (const form of document.querySelectorAll("form[data-once]")) {
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
  window.addEventListener("pageshow", () => { sent = false; });
}

const clock = document.querySelector("[data-left]");
if (clock) {
  const end = performance.now() + 1000 * Number(clock.dataset.left);
  const bar = clock.querySelector("progress");
  const text = clock.querySelector("p");
  const tick = () => {
    const left = Math.max(0, (end - performance.now()) / 1000);
    bar.value = left;
    const words = clock.dataset.text.replace("{seconds}", Math.ceil(left));
    if (text.textContent !== words) text.textContent = words;
    if (left > 0) setTimeout(tick, 100);
    else document.querySelector("[data-timeout]").click();
  };
  tick();
}

function step(dialog, change) {
  const level = Math.min(4, Math.max(1, Number(dialog.dataset.level || 1) + change));
  dialog.dataset.level = level;
}

function enlarge(tile) {
  const dialog = document.getElementById("zoom");
  const small = tile.querySelector("img");
  const large = dialog.querySelector("img");
  large.src = small.src;
  large.alt = small.alt;
  dialog.dataset.level = 1;
  dialog.showModal();
}

for (const tile of document.querySelectorAll("[data-zoom]")) {
  tile.addEventListener("click", (event) => {
    event.preventDefault();
    enlarge(tile);
  });
}
const dialog = document.getElementById("zoom");
if (dialog) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  for (const button of dialog.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(dialog, Number(button.dataset.step)));
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    // The clipboard is there on localhost and over TLS only; selected text can be copied anywhere.
    if (!navigator.clipboard) return;
    navigator.clipboard.writeText(field.value).then(() => {
      button.textContent = button.dataset.done;
    }).catch(() => {});
  });
}
