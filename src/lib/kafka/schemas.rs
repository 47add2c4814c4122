//! The documents of `topics/`, generated from the message types and the catalogue: JSON Schemas and
//! an `AsyncAPI` 3.0 description. Pure.

use std::fmt::Write as _;

use schemars::{JsonSchema, schema_for};

use super::catalogue::{Catalogue, CatalogueError, TopicSpec};
use crate::messages::{AuditRecord, Command, DeadLetter, EventBatch, header};

/// A file of `topics/`: its path there and its text.
pub type Document = (String, String);

/// Every generated file.
pub fn documents() -> Result<Vec<Document>, CatalogueError> {
    let catalogue = Catalogue::embedded(false)?;
    let mut documents = vec![
        schema::<Command>("Command"),
        schema::<EventBatch>("EventBatch"),
        schema::<AuditRecord>("AuditRecord"),
        schema::<DeadLetter>("DeadLetter"),
    ];
    for spec in &catalogue.topics {
        let Some(name) = &spec.schema else { continue };
        let path = schema_path(name);
        if !documents.iter().any(|(known, _)| *known == path) {
            let text = format!("{}: there is no message type {name}", spec.topic);
            return Err(CatalogueError::Invalid(text));
        }
    }
    documents.push(("asyncapi.yaml".to_owned(), asyncapi(&catalogue)));
    Ok(documents)
}

fn schema<T: JsonSchema>(name: &str) -> Document {
    // The text form of a JSON value never fails.
    let text = format!("{:#}\n", schema_for!(T).to_value());
    (schema_path(name), text)
}

/// `AuditRecord` → `schemas/audit_record.json`.
fn schema_path(name: &str) -> String {
    let mut file = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !file.is_empty() {
            file.push('_');
        }
        file.push(letter.to_ascii_lowercase());
    }
    format!("schemas/{file}.json")
}

/// The headers that every record carries, and those that only some do.
const HEADERS: [(&str, &str, bool); 11] = [
    (header::CE_SPECVERSION, "CloudEvents version, `1.0`.", true),
    (
        header::CE_ID,
        "Names one logical message: the same over retries and re-emissions, another for the next.",
        true,
    ),
    (header::CE_TYPE, "What kind of message this is.", true),
    (header::CE_SOURCE, "The process that made it.", true),
    (
        header::CE_TIME,
        "When it was handed to the producer, RFC 3339.",
        true,
    ),
    (header::TENANT, "The tenant whose message this is.", true),
    (header::KEY_ID, "Which secret made the signature.", true),
    (
        header::SIGNATURE,
        "HMAC-SHA256 over topic, key, tenant, run, ce_id, ah_not_after and value; hexadecimal.",
        true,
    ),
    (header::CE_SUBJECT, "The run that it is about.", false),
    (
        header::NOT_AFTER,
        "Milliseconds since the epoch after which a command is not carried out.",
        false,
    ),
    (header::TRACEPARENT, "W3C trace context.", false),
];

fn asyncapi(catalogue: &Catalogue) -> String {
    let mut out = String::from(HEAD);
    out.push_str("channels:\n");
    for spec in &catalogue.topics {
        channel(&mut out, spec);
    }
    out.push_str("operations:\n");
    for spec in &catalogue.topics {
        operations(&mut out, spec);
    }
    out.push_str("components:\n  messages:\n");
    for spec in &catalogue.topics {
        message(&mut out, spec);
    }
    out.push_str("  schemas:\n    headers:\n      type: object\n      required:\n");
    for (name, _, _) in HEADERS.iter().filter(|h| h.2) {
        line(&mut out, 8, &format!("- {name}"));
    }
    line(&mut out, 6, "properties:");
    for (name, what, _) in HEADERS {
        line(&mut out, 8, &format!("{name}:"));
        line(&mut out, 10, "type: string");
        line(&mut out, 10, &format!("description: {}", quoted(what)));
    }
    out
}

const HEAD: &str = "\
# Generated from topics/topics.toml and the message types: `agenthub topics schemas --write topics`.
asyncapi: 3.0.0
info:
  title: AgentHub topics
  version: '1'
  description: >-
    Values are JSON, headers are CloudEvents 1.0 in binary mode. On the broker, a topic's name begins
    with the installation's namespace and a dot, when it has one. Personal data in values is sealed.
defaultContentType: application/json
";

fn channel(out: &mut String, spec: &TopicSpec) {
    let name = spec.topic.as_str();
    line(out, 2, &format!("{}:", id(name)));
    line(out, 4, &format!("address: {name}"));
    line(out, 4, &format!("description: {}", quoted(&spec.purpose)));
    line(out, 4, "messages:");
    line(out, 6, &format!("{}:", id(name)));
    let message = format!("$ref: '#/components/messages/{}'", id(name));
    line(out, 8, &message);
    line(out, 4, "bindings:");
    line(out, 6, "kafka:");
    line(out, 8, &format!("partitions: {}", spec.partitions));
    line(out, 8, &format!("replicas: {}", spec.replication));
    // The binding names only these; the whole configuration stands in topics.toml.
    line(out, 8, "topicConfiguration:");
    if let Some(policy) = spec.config.get("cleanup.policy") {
        line(out, 10, &format!("cleanup.policy: [{policy}]"));
    }
    for key in ["retention.ms", "delete.retention.ms", "max.message.bytes"] {
        if let Some(value) = spec.config.get(key) {
            line(out, 10, &format!("{key}: {value}"));
        }
    }
}

fn operations(out: &mut String, spec: &TopicSpec) {
    let name = spec.topic.as_str();
    let sides = [("send", &spec.producers), ("receive", &spec.consumers)];
    for (action, services) in sides {
        if services.is_empty() {
            continue;
        }
        line(out, 2, &format!("{action}_{}:", id(name)));
        line(out, 4, &format!("action: {action}"));
        line(out, 4, "channel:");
        line(out, 6, &format!("$ref: '#/channels/{}'", id(name)));
        let who = services.join(", ");
        let mut summary = match action {
            "send" => format!("Written by {who}."),
            _ => format!("Read by the consumer group {who}."),
        };
        if let (Some(target), "receive") = (spec.dead_letter, action) {
            let _infallible = write!(summary, " What it cannot handle goes to {target}.");
        }
        line(out, 4, &format!("summary: {}", quoted(&summary)));
    }
}

fn message(out: &mut String, spec: &TopicSpec) {
    let name = spec.topic.as_str();
    line(out, 4, &format!("{}:", id(name)));
    let title = spec.schema.as_deref().unwrap_or("State");
    line(out, 6, &format!("name: {title}"));
    line(out, 6, &format!("summary: {}", quoted(&spec.purpose)));
    line(out, 6, "headers:");
    line(out, 8, "$ref: '#/components/schemas/headers'");
    if let Some(schema) = &spec.schema {
        line(out, 6, "payload:");
        line(out, 8, &format!("$ref: './{}'", schema_path(schema)));
    }
    line(out, 6, "bindings:");
    line(out, 8, "kafka:");
    line(out, 10, "key:");
    line(out, 12, "type: string");
    line(out, 12, &format!("description: {}", quoted(&spec.key)));
}

/// `plan.commands` → `plan_commands`: ids of `AsyncAPI` hold no dots.
fn id(topic: &str) -> String {
    topic.replace('.', "_")
}

/// A YAML scalar in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn line(out: &mut String, indent: usize, text: &str) {
    let _infallible = writeln!(out, "{:indent$}{text}", "");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::messages::Topic;

    #[test]
    fn the_files_in_topics_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topics");
        for (path, text) in documents().unwrap() {
            let found = std::fs::read_to_string(folder.join(&path)).unwrap_or_default();
            assert!(
                found == text,
                "topics/{path} is stale: agenthub topics schemas --write topics"
            );
        }
    }

    #[test]
    fn no_schema_is_left_over() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topics/schemas");
        let known: Vec<String> = documents().unwrap().into_iter().map(|d| d.0).collect();
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(known.contains(&format!("schemas/{name}")), "{name}");
        }
    }

    #[test]
    fn schemas_are_schemas_and_refuse_what_is_not_a_message() {
        for (path, text) in documents().unwrap() {
            if path.starts_with("schemas/") {
                let schema = serde_json::from_str(&text).unwrap();
                let validator = jsonschema::validator_for(&schema).unwrap();
                assert!(
                    !validator.is_valid(&serde_json::json!({"v": "one"})),
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn the_description_names_every_topic_and_header() {
        let text = asyncapi(&Catalogue::embedded(false).unwrap());
        for topic in Topic::ALL {
            assert!(text.contains(&format!("    address: {topic}\n")), "{topic}");
        }
        assert_eq!(schema_path("AuditRecord"), "schemas/audit_record.json");
        assert!(text.contains("$ref: './schemas/audit_record.json'"));
        assert_eq!(quoted("a key's"), "'a key''s'");
    }
}
