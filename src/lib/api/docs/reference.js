// Draws the reference from /openapi.json. Everything is put in as text, never as markup.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// `code` between backquotes.
function prose(text) {
  const parts = (text || "").split("`");
  return parts.map((part, i) => (i % 2 ? element("code", null, part) : document.createTextNode(part)));
}

function resolve(document_, node) {
  if (!node || !node.$ref) return node;
  const path = node.$ref.split("/").slice(1);
  return path.reduce((at, key) => at && at[key.replace(/~1/g, "/").replace(/~0/g, "~")], document_);
}

function typeName(document_, schema) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const choice = schema.oneOf || schema.anyOf || schema.allOf;
  if (choice) return choice.map((one) => typeName(document_, one)).join(schema.allOf ? " and " : " or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  const type = [].concat(schema.type || "any").join(" or ");
  return schema.items ? "array of " + typeName(document_, schema.items) : type;
}

function fieldsOf(document_, schema, required = new Set()) {
  schema = resolve(document_, schema);
  if (!schema) return [];
  if (schema.allOf) return schema.allOf.flatMap((one) => fieldsOf(document_, one));
  const choice = (schema.oneOf || schema.anyOf || []).filter((one) => one.type !== "null");
  if (choice.length === 1) return fieldsOf(document_, choice[0]);
  const needed = new Set([...required, ...(schema.required || [])]);
  return Object.entries(schema.properties || {}).map(([name, property]) => ({
    name,
    type: typeName(document_, property),
    needed: needed.has(name),
    text: property.description || (resolve(document_, property) || {}).description || "",
  }));
}

function table(rows, needs) {
  if (!rows.length) return null;
  const line = (row) => element("tr", null,
    element("td", null, element("code", null, row.name), row.needed && needs ? " (required)" : ""),
    element("td", { class: "dim" }, row.type),
    element("td", null, ...prose(row.text)));
  return element("table", null, element("tbody", null, ...rows.map(line)));
}

function schemaTable(document_, schema, needs) {
  const fields = fieldsOf(document_, schema);
  return fields.length ? table(fields, needs) : element("p", { class: "dim" }, typeName(document_, schema));
}

function contentOf(document_, holder) {
  const [type, media] = Object.entries(holder.content || {})[0] || [];
  return type ? { type, schema: media.schema } : null;
}

function responseNode(document_, status, response) {
  response = resolve(document_, response);
  const content = contentOf(document_, response);
  const open = status.startsWith("2") ? { open: "" } : {};
  return element("details", open,
    element("summary", null, element("code", null, status), " ", ...prose(response.description)),
    content ? schemaTable(document_, content.schema, false) : null);
}

function operationNode(document_, method, path, operation, id) {
  const node = element("section", { id },
    element("h3", null, element("code", null, method.toUpperCase() + " " + path)),
    element("p", null, ...prose([operation.summary, operation.description].filter(Boolean).join(" "))));
  const parameters = (operation.parameters || []).map((one) => resolve(document_, one)).map((one) => ({
    name: one.name,
    type: one.in + ", " + typeName(document_, one.schema),
    needed: one.required,
    text: one.description,
  }));
  if (parameters.length) node.append(element("h4", null, "Parameters"), table(parameters, true));
  if (operation.requestBody) {
    const content = contentOf(document_, resolve(document_, operation.requestBody));
    node.append(element("h4", null, "Body"), schemaTable(document_, content.schema, true));
  }
  node.append(element("h4", null, "Answers"));
  for (const [status, response] of Object.entries(operation.responses || {})) {
    node.append(responseNode(document_, status, response));
  }
  return node;
}

function draw(document_) {
  document.getElementById("about").replaceChildren(
    ...prose(document_.info.description), " ", element("a", { href: "/openapi.json" }, "openapi.json"));
  const contents = document.getElementById("contents");
  const reference = document.getElementById("reference");
  for (const tag of document_.tags || []) {
    const list = element("ul");
    contents.append(element("h2", null, tag.name), list);
    reference.append(element("h2", null, tag.name), element("p", null, ...prose(tag.description)));
    for (const [path, item] of Object.entries(document_.paths)) {
      for (const method of METHODS.filter((name) => item[name] && item[name].tags.includes(tag.name))) {
        const id = item[method].operationId;
        list.append(element("li", null, element("a", { href: "#" + id }, method.toUpperCase() + " " + path)));
        reference.append(operationNode(document_, method, path, item[method], id));
      }
    }
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

fetch("/openapi.json")
  .then((answer) => answer.json())
  .then(draw)
  .catch((error) => {
    document.getElementById("about").textContent = "openapi.json could not be shown: " + error.message;
  });
