// A heading that is pressed sorts its table: from the highest, from the lowest, then as it was.
"use strict";
const number = (cell) => parseFloat(cell.textContent.replace(/(\d),(?=\d{3})/g, "$1").replace("−", "-"));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) && isNaN(y)) return b.textContent.localeCompare(a.textContent);
  return isNaN(x) ? -Infinity : isNaN(y) ? Infinity : x - y;
};
for (const table of document.querySelectorAll("table")) {
  const [body] = table.tBodies, rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (rows.length < 3) continue;
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const order = { descending: "ascending", ascending: null }[before];
      const wanted = before ? order : "descending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      if (wanted) head.setAttribute("aria-sort", wanted);
      const sorted = wanted ? [...rows].sort((a, b) => {
        const difference = compare(a.cells[column], b.cells[column]);
        return wanted === "ascending" && isFinite(difference) ? difference : -difference;
      }) : rows;
      body.append(...sorted);
    });
  });
}
