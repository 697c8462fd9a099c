"use strict";
// Sorting, filtering and searching of the grid. The state also lives in the address after "#", so that a view
// can be sent to somebody: report.html#sort=truth&show=wrong&find=cat
(() => {
  const PAGE = 60;
  const grid = document.getElementById("grid");
  if (grid) {
    const tools = document.getElementById("tools");
    const more = document.getElementById("more");
    const count = document.getElementById("count");
    const cards = [...grid.children];
    const number = (field, sign) => (a, b) => sign * (a.dataset[field] - b.dataset[field]);
    const text = (field) => (a, b) =>
      a.dataset[field].localeCompare(b.dataset[field], undefined, { numeric: true });
    const orders = {
      given: number("place", 1), worst: number("bad", -1), best: number("bad", 1), surest: number("score", -1),
      truth: text("truth"), guess: text("guess"), key: text("key"),
    };
    let limit = PAGE;

    const draw = () => {
      const sort = tools.sort.value, show = tools.show ? tools.show.value : "all";
      const find = tools.find.value.trim().toLowerCase();
      const fits = (card) => (show === "all" || card.classList.contains(show)) &&
        [card.dataset.truth, card.dataset.guess, card.dataset.key].some((t) => t.toLowerCase().includes(find));
      const found = cards.filter(fits).sort((a, b) => orders[sort](a, b) || a.dataset.place - b.dataset.place);
      const seen = new Set(found.slice(0, limit));
      for (const card of cards) card.hidden = !seen.has(card);
      grid.append(...found);
      count.textContent = `${seen.size} of ${cards.length} shown`;
      more.hidden = found.length <= limit;
    };
    const change = () => {
      limit = PAGE;
      const state = new URLSearchParams();
      for (const field of [tools.sort, tools.show, tools.find]) {
        const plain = field && (field.options ? field.options[0].value : "");
        if (field && field.value !== plain) state.set(field.name, field.value);
      }
      history.replaceState(null, "", `#${state}`);
      draw();
    };
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const field = ["sort", "show", "find"].includes(name) && tools[name];
      if (field && (!field.options || [...field.options].some((o) => o.value === value))) field.value = value;
    }
    tools.addEventListener("input", change);
    tools.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { limit += 4 * PAGE; draw(); });
    draw();
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !numeric;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => numeric
        ? a.cells[column].dataset.v - b.cells[column].dataset.v
        : a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(a, b)));
    }));
  }
})();
