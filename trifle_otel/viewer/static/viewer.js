// What makes the viewer handier: keys, pages that follow what runs, folding at once. Reading needs none of it.
"use strict";

(() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const changed = new Set(); // names of what somebody folded or unfolded

  // What a block, or the value of a line, is called: it is known again by it when the page comes anew.
  function name(details) {
    if (details.id || details.dataset.fold) return details.id || details.dataset.fold;
    const line = details.closest(".ln[id]");
    return line ? `${line.id}.${$$("details", line).indexOf(details)}` : null;
  }

  // Lines are made visible when one is led to them, however deep they are folded.
  function reveal(line) {
    for (let block = line.parentElement?.closest("details"); block; block = block.parentElement?.closest("details")) {
      block.open = true;
    }
  }

  // The line that the address leads to. It stays so when the page has come anew, unlike :target.
  function anchored() {
    return /^#L\d+$/.test(location.hash) ? document.getElementById(location.hash.slice(1)) : null;
  }

  function toAnchor() {
    const line = anchored();
    if (!line) return;
    reveal(line);
    line.scrollIntoView({ block: "center", behavior: "instant" });
  }

  function fold(open) {
    for (const block of $$(".lines details.block")) {
      block.open = open;
      changed.add(name(block));
    }
    const link = $(".fold-all");
    if (link) link.textContent = open ? "Fold all" : "Unfold all";
  }

  function isFolded() {
    return $$(".lines details.block").every((block) => !block.open);
  }

  // The next or previous of some lines, as seen from the one that was gone to last, whatever that one is.
  function step(lines, by) {
    const from = $(".lines .is-found") ?? anchored();
    const side = by > 0 ? Node.DOCUMENT_POSITION_FOLLOWING : Node.DOCUMENT_POSITION_PRECEDING;
    const there = from ? lines.filter((line) => from.compareDocumentPosition(line) & side) : lines;
    return there.at(by > 0 ? 0 : -1) ?? null;
  }

  function forgetFound() {
    for (const found of $$(".is-found")) found.classList.remove("is-found");
  }

  function goTo(line) {
    forgetFound();
    reveal(line);
    line.classList.add("is-found");
    line.scrollIntoView({ block: "center", behavior: "instant" });
    $(".no", line)?.focus({ preventScroll: true });
  }

  function problems() {
    return $$(".lines .ln.is-error, .lines .ln.is-warning").filter((line) => !line.matches(".closes, .around-row")).map(holder);
  }

  function holder(line) {
    return line.closest("summary") ? line.closest(".blk") : line;
  }

  function matches() {
    return $$(".lines .match:not(.around-row)").map(holder);
  }

  function follow(selector) {
    $(selector)?.click();
  }

  // To the first match or problem after this page, or the last match before it.
  function goBeyond(selector) {
    const url = $(selector)?.dataset.beyond;
    if (url) location.href = url;
  }

  const keys = {
    s: () => $("#add")?.focus(),
    "/": () => $("#q")?.focus(),
    e: () => {
      const line = step(problems(), 1);
      line ? goTo(line) : goBeyond(".tools");
    },
    n: () => {
      const line = step(matches(), 1);
      line ? goTo(line) : goBeyond(".match-after");
    },
    p: () => {
      const line = step(matches(), -1);
      line ? goTo(line) : goBeyond(".match-before");
    },
    f: () => fold(isFolded()),
    "[": () => follow('.pager a[rel="prev"]'),
    "]": () => follow('.pager a[rel="next"]'),
  };

  function useKeys() {
    const box = $("#keys-on");
    const setting = "trifle-viewer-keys";
    let on = true;
    try {
      on = localStorage.getItem(setting) !== "off";
    } catch {} // no storage: keys are on
    if (box) {
      box.checked = on;
      box.addEventListener("change", () => {
        on = box.checked;
        try {
          localStorage.setItem(setting, on ? "on" : "off");
        } catch {}
      });
    }
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
      if (typing && event.key === "Escape") typing.blur();
      if (!on || typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  // Times in UTC, with the reader's own when pointed at.
  function localTimes() {
    for (const time of $$("time[datetime]:not([title])")) time.title = new Date(time.dateTime).toLocaleString();
  }

  // What is still open takes longer every second. The server's clock counts, not the reader's.
  let ahead = 0;
  function tick() {
    for (const time of $$(".runs")) {
      const seconds = Math.max(0, (Date.now() - ahead - Number(time.dataset.since)) / 1000);
      time.textContent = `open, ${duration(seconds)}`;
    }
  }

  function duration(seconds) {
    if (seconds < 60) return `${seconds.toFixed(0)} s`;
    const [whole, rest] = [Math.floor(seconds), (length) => Math.floor((seconds % (length * 60)) / length)];
    return seconds < 3600 ? `${Math.floor(whole / 60)} min ${rest(1)} s` : `${Math.floor(whole / 3600)} h ${rest(60)} min`;
  }

  // A page about what runs is asked for again; the server says in few bytes when nothing has changed.
  let etag = null;
  async function refresh() {
    const seconds = Number(document.body.dataset.refresh);
    if (!seconds) return;
    if (!document.hidden) {
      try {
        const response = await fetch(location.href.split("#")[0], { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
        const date = Date.parse(response.headers.get("date"));
        if (date) ahead = Date.now() - date;
        if (response.status === 200) {
          const replaced = replace(new DOMParser().parseFromString(await response.text(), "text/html"));
          if (replaced) etag = response.headers.get("etag");
        }
      } catch {} // out of reach now: it is tried again
    }
    setTimeout(refresh, seconds * 1000);
  }

  // Gives whether it did: not while somebody types, and then the same page is asked for again.
  function replace(page) {
    const [old, fresh] = [$("#live"), $("#live", page)];
    if (!old || !fresh || old.contains($("input:focus, select:focus"))) return false;
    const states = new Map($$("details", old).map((block) => [name(block), block.open]));
    const focused = document.activeElement?.closest?.(".lines [id]")?.id;
    const found = $(".lines .is-found", old)?.id;
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
    old.replaceWith(document.adoptNode(fresh));
    for (const block of $$("details", fresh)) if (changed.has(name(block))) block.open = states.get(name(block)) ?? block.open;
    if (focused) $(`#${CSS.escape(focused)} .no`)?.focus({ preventScroll: true });
    if (found) document.getElementById(found)?.classList.add("is-found");
    document.title = page.title;
    document.body.dataset.refresh = page.body.dataset.refresh ?? "";
    localTimes();
    tick();
    if (atEnd && $(".lines")) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    return true;
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest?.(".fold-all")) {
      event.preventDefault();
      fold(isFolded());
    }
    const block = event.target.closest?.("summary")?.parentElement;
    if (block && name(block)) changed.add(name(block));
  });
  // What is called a picture and is none: its name is there anyway.
  function withoutBroken(picture) {
    picture.closest(".picture").hidden = true;
  }
  document.addEventListener("error", (event) => event.target.matches?.(".picture img") && withoutBroken(event.target), true);
  for (const picture of $$(".picture img")) if (picture.complete && !picture.naturalWidth) withoutBroken(picture);
  addEventListener("hashchange", () => {
    forgetFound(); // keys go on from the line that was led to now
    toAnchor();
  });
  useKeys();
  localTimes();
  toAnchor();
  $(".file mark")?.scrollIntoView({ block: "center", behavior: "instant" });
  tick();
  setInterval(tick, 1000);
  refresh();
})();
