"use strict";
// Columns of numbers are aligned to the right, those of names to the left. Each table is sorted by the column whose head is clicked, or chosen by keyboard; once more turns the order round.
// A score goes by its value, without its error. What is missing comes last in either order.
const number = /^([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?: ± .*)?$/i;
const missing = /^(-?|nan)$/i;

function readColumn(body, column) {
  const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const present = rows.filter(({ text }) => !missing.test(text));
  return { rows, present, isNumeric: present.every(({ text }) => number.test(text)) };
}

function sortBy(body, column, sign) {
  const { rows, present, isNumeric } = readColumn(body, column);
  const compare = isNumeric
    ? (a, b) => parseFloat(a.text) - parseFloat(b.text)
    : (a, b) => a.text.localeCompare(b.text, "en", { numeric: true });
  present.sort((a, b) => sign * compare(a, b));
  body.append(...[...present, ...rows.filter(({ text }) => missing.test(text))].map(({ row }) => row));
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    // A first column is of names, such as the number of a trial.
    if (column > 0 && readColumn(table.tBodies[0], column).isNumeric) {
      [...table.rows].forEach((row) => row.cells[column].classList.add("numeric"));
    }
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sortBy(table.tBodies[0], column, order === "ascending" ? 1 : -1);
    });
  });
}
