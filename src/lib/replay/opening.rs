//! Sealed payloads within records: where they are, and how an operator with the key ring opens them.

use std::collections::HashMap;

use serde_json::Value;

use crate::ids::{SessionId, TenantId};
use crate::messages::Topic;
use crate::privacy::{DataKey, KeyCache, KeyRing, Sealed};
use crate::runs::Runs;

/// Sessions whose keys are kept at hand.
const SESSIONS: usize = 10_000;

/// Opens payloads with the sessions' data keys, which the ledger keeps wrapped.
#[derive(Debug)]
pub struct Keys {
    runs: Runs,
    cache: KeyCache,
    /// Sessions whose key is gone, or does not open.
    gone: HashMap<SessionId, &'static str>,
}

impl Keys {
    /// Keys of the sessions in `runs`, wrapped by `ring`.
    pub fn new(runs: Runs, ring: KeyRing) -> Self {
        Self {
            runs,
            cache: KeyCache::new(ring, SESSIONS),
            gone: HashMap::new(),
        }
    }

    async fn of(
        &mut self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<DataKey, &'static str> {
        if let Some(key) = self.cache.get(tenant, session) {
            return Ok(key);
        }
        if let Some(reason) = self.gone.get(session) {
            return Err(reason);
        }
        let reason = match self.runs.wrapped_key(tenant, session).await {
            Ok(Some(wrapped)) => match self.cache.unwrap(&wrapped, tenant, session) {
                Ok(key) => return Ok(key),
                Err(_) => "the session's key was wrapped by another ring",
            },
            Ok(None) => "the session's key is gone",
            Err(_) => return Err("Redis is not available"),
        };
        if self.gone.len() >= SESSIONS {
            self.gone.clear();
        }
        self.gone.insert(session.clone(), reason);
        Err(reason)
    }

    /// Replaces the sealed payloads in the value of a record of `topic` by what they hold, or by the
    /// reason why they do not open.
    pub async fn open(&mut self, topic: Topic, tenant: Option<&str>, value: &mut Value) {
        let tenant: Option<TenantId> = tenant.and_then(|tenant| tenant.parse().ok());
        for (owner, slot) in slots(topic, value) {
            let Some(text) = slot.as_str() else { continue };
            let sealed = Sealed::from_stored(text);
            let outcome = match (&tenant, owner) {
                (Some(tenant), Some(session)) => self.of(tenant, &session).await,
                _ => Err("the record names no session"),
            };
            let opened = outcome.and_then(|key| key.open(&sealed).map_err(|_| "it does not open"));
            *slot = match opened {
                Ok(bytes) => serde_json::from_slice(&bytes)
                    .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()),
                Err(reason) => {
                    format!("[sealed, {} bytes: {reason}]", sealed.as_str().len()).into()
                }
            };
        }
    }
}

/// Puts a note in the place of each sealed payload in the value of a record of `topic`.
pub fn cover(topic: Topic, value: &mut Value) {
    for (_, slot) in slots(topic, value) {
        if let Some(text) = slot.as_str() {
            *slot = format!("[sealed, {} bytes]", text.len()).into();
        }
    }
}

/// The sealed payloads in a value, each with the session whose key seals it.
fn slots(topic: Topic, value: &mut Value) -> Vec<(Option<SessionId>, &mut Value)> {
    let session = |of: &Value| of.get("session_id")?.as_str()?.parse::<SessionId>().ok();
    let mut found = Vec::new();
    match topic {
        Topic::PlanCommands | Topic::ExecuteCommands => {
            let owner = value.get("spec").and_then(session);
            let Some(command) = value.as_object_mut() else {
                return found;
            };
            for (name, part) in command {
                match name.as_str() {
                    "plan" => found.push((owner.clone(), part)),
                    "spec" => {
                        let fields = part.as_object_mut().into_iter().flatten();
                        let sealed = fields.filter(|(name, _)| {
                            matches!(name.as_str(), "goal" | "context" | "plan")
                        });
                        found.extend(sealed.map(|(_, part)| (owner.clone(), part)));
                    }
                    _ => {}
                }
            }
        }
        Topic::AgentEvents => {
            let events = value.get_mut("events").and_then(Value::as_array_mut);
            for event in events.into_iter().flatten() {
                let owner = session(event);
                let fields = event.as_object_mut().into_iter().flatten();
                // Data in the clear is an object, and left as it is.
                let sealed = fields.filter(|(name, part)| {
                    name.as_str() == "state" || (name.as_str() == "data" && part.is_string())
                });
                found.extend(sealed.map(|(_, part)| (owner.clone(), part)));
            }
        }
        Topic::AgentState => {
            let owner = session(value);
            let fields = value.as_object_mut().into_iter().flatten();
            let sealed = fields
                .filter(|(name, _)| matches!(name.as_str(), "context" | "subject" | "metadata"));
            found.extend(sealed.map(|(_, part)| (owner.clone(), part)));
        }
        Topic::AuditLogs | Topic::DeadLetter => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sealed_in(topic: Topic, mut value: Value) -> Vec<(bool, String)> {
        slots(topic, &mut value)
            .into_iter()
            .map(|(owner, slot)| (owner.is_some(), slot.to_string()))
            .collect()
    }

    #[test]
    fn sealed_payloads_are_found_with_their_session() {
        let session = SessionId::generate();
        let command = json!({
            "kind": "execute", "plan": "p1",
            "spec": { "session_id": session, "goal": "g", "context": "c", "plan": "p2", "model": "m" },
        });
        let mut found = sealed_in(Topic::ExecuteCommands, command);
        found.sort();
        let names: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(names, ["\"c\"", "\"g\"", "\"p1\"", "\"p2\""]);
        assert!(found.iter().all(|(owner, _)| *owner));

        let batch = json!({ "events": [
            { "session_id": session, "data": {}, "state": "s" }, { "session_id": session, "data": "d" },
        ] });
        assert_eq!(
            sealed_in(Topic::AgentEvents, batch),
            [(true, "\"s\"".to_owned()), (true, "\"d\"".to_owned())]
        );

        let state =
            json!({ "kind": "session", "session_id": session, "subject": "s", "wrapped_key": "w" });
        assert_eq!(
            sealed_in(Topic::AgentState, state),
            [(true, "\"s\"".to_owned())]
        );
        for odd in [json!(null), json!([1]), json!({ "spec": 1, "events": {} })] {
            for topic in Topic::ALL {
                assert!(sealed_in(topic, odd.clone()).is_empty());
            }
        }
    }

    #[test]
    fn what_stays_sealed_is_covered() {
        let mut value = json!({ "plan": "abc", "spec": { "model": "m" } });
        cover(Topic::PlanCommands, &mut value);
        assert_eq!(value["plan"], "[sealed, 3 bytes]");
        assert_eq!(value["spec"]["model"], "m");
    }
}
