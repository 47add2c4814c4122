//! A declared tool: each call is a `POST` of the arguments to the operator's address, through the
//! guarded client.

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use crate::net::{Class, Policy, SafeClient};

use super::declared::Declared;
use super::{Tool, ToolCall, ToolError, ToolErrorClass, ToolOutput, ToolSpec};

/// Content types that a declared tool may answer with.
pub const CONTENT_TYPES: &[&str] = &["application/json", "application/*+json"];

/// The tool.
#[derive(Debug, Clone)]
pub struct HttpTool {
    declared: Declared,
    client: SafeClient,
}

/// The address of a declared tool may never be called.
#[derive(Debug, thiserror::Error)]
#[error(
    "the tool {name:?} has an address that may not be called ({reason}); see AGENTHUB_FETCH_ALLOW"
)]
pub struct NotReachable {
    name: &'static str,
    reason: &'static str,
}

impl HttpTool {
    /// A tool that is called through the guarded client, whose limits should accept
    /// [`CONTENT_TYPES`] and leave the tool its time. An address that `policy` refuses whatever its
    /// name resolves to is refused here and now.
    pub fn new(
        declared: Declared,
        policy: &Policy,
        client: SafeClient,
    ) -> Result<Self, NotReachable> {
        policy.screen(&declared.url).map_err(|block| NotReachable {
            name: declared.spec.name,
            reason: block.reason.code(),
        })?;
        Ok(Self { declared, client })
    }
}

/// What a call tells of itself besides its arguments.
fn headers(declared: &HeaderMap, call: &ToolCall) -> HeaderMap {
    let mut headers = declared.clone();
    for (name, value) in [
        ("idempotency-key", call.idempotency_key.as_str()),
        ("agenthub-tenant", call.tenant.as_str()),
        ("agenthub-session", call.session_id.as_str()),
        ("agenthub-run", call.run_id.as_str()),
        ("agenthub-step", call.step_id.as_str()),
    ] {
        // Identifiers are visible ASCII.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    headers.insert("agenthub-attempt", HeaderValue::from(call.attempt));
    headers
}

#[async_trait]
impl Tool for HttpTool {
    fn spec(&self) -> &ToolSpec {
        &self.declared.spec
    }

    async fn call(&self, call: ToolCall) -> Result<ToolOutput, ToolError> {
        let headers = headers(&self.declared.headers, &call);
        let posted = self
            .client
            .post(&self.declared.url, headers, call.args.to_string());
        let answer = posted.await.map_err(|error| ToolError {
            class: match error.class() {
                Class::Refused => ToolErrorClass::Refused,
                Class::Transient => ToolErrorClass::Transient {
                    retry_after: error.retry_after(),
                },
                Class::Permanent => ToolErrorClass::Permanent,
            },
            code: error.code(),
            message: error.to_string(),
        })?;
        if answer.truncated {
            let message = "the answer is larger than is kept";
            return Err(ToolError::permanent("output_too_large", message));
        }
        let value = if answer.body.is_empty() {
            Value::Null
        } else {
            // The parser's text could show what the other side wrote.
            serde_json::from_slice(&answer.body)
                .map_err(|_| ToolError::permanent("answer_not_json", "the answer is not JSON"))?
        };
        Ok(ToolOutput {
            value,
            usage: None,
            fresh_for: answer.fresh_for,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use axum::Router;
    use axum::http::{StatusCode, header};
    use axum::response::{IntoResponse, Redirect};
    use axum::routing::post;
    use serde_json::json;

    use super::*;
    use crate::ids::{RunId, SessionId};
    use crate::net::{AllowList, Limits};
    use crate::tools::declared;

    fn tool(at: SocketAddr, path: &str, allow: &[&str]) -> Result<HttpTool, NotReachable> {
        let file = format!(
            "[[tool]]\nname = \"t\"\ndescription = \"d\"\neffects = \"unsafe\"\n\
             url = \"http://{at}{path}\"\nheaders = {{ x-token = \"sesame\" }}\n\
             parameters = {{ type = \"object\" }}"
        );
        let [declared] = declared::parse(&file).unwrap().try_into().unwrap();
        let limits = Limits {
            total: Duration::from_secs(20),
            max_bytes: 100,
            content_types: CONTENT_TYPES,
        };
        let policy = Policy::new(AllowList::parse(allow).unwrap());
        let client = SafeClient::new(policy.clone(), limits).unwrap();
        HttpTool::new(declared, &policy, client)
    }

    fn call() -> ToolCall {
        let run_id = RunId::generate();
        ToolCall {
            tenant: "acme".parse().unwrap(),
            session_id: SessionId::generate(),
            idempotency_key: format!("{run_id}/s1"),
            run_id,
            step_id: "s1".into(),
            attempt: 2,
            args: json!({ "a": [1, "b"] }),
        }
    }

    #[tokio::test]
    async fn a_call_is_posted_and_an_answer_is_json_or_a_failure() {
        let echo = async |headers: HeaderMap, body: String| {
            let text = |name: &str| headers[name].to_str().unwrap().to_owned();
            let told = [
                "idempotency-key",
                "agenthub-tenant",
                "agenthub-attempt",
                "x-token",
            ];
            let told: Vec<_> = told.into_iter().map(text).collect();
            axum::Json(json!([told, serde_json::from_str::<Value>(&body).unwrap()]))
        };
        let json = |body: &'static str| {
            post(async move || ([(header::CONTENT_TYPE, "application/json")], body))
        };
        let router = Router::new()
            .route("/echo", post(echo))
            .route("/none", post(async || StatusCode::NO_CONTENT))
            .route("/moved", post(async || Redirect::temporary("/none")))
            .route("/html", post(async || axum::response::Html("<p>")))
            .route("/broken", json("{"))
            .route("/long", json("\"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\""))
            .route("/busy", post(async || (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "3")]).into_response()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let refused = tool(at, "/echo", &[]).unwrap_err().to_string();
        assert!(refused.contains("address_not_global"), "{refused}");
        let call_of = |path: &'static str| {
            let tool = tool(at, path, &["127.0.0.1"]).unwrap();
            async move { tool.call(call()).await }
        };
        let asked = call();
        let key = asked.idempotency_key.clone();
        let echo = tool(at, "/echo", &["127.0.0.1"]).unwrap();
        let told = echo.call(asked).await.unwrap().value;
        assert_eq!(
            told,
            json!([[key, "acme", "2", "sesame"], { "a": [1, "b"] }])
        );
        assert_eq!(call_of("/none").await.unwrap().value, Value::Null);
        for (path, code) in [
            ("/moved", "http_status"),
            ("/html", "content_type_not_accepted"),
            ("/broken", "answer_not_json"),
            ("/long", "output_too_large"),
        ] {
            let error = call_of(path).await.unwrap_err();
            assert_eq!(
                (error.class, error.code),
                (ToolErrorClass::Permanent, code),
                "{path}"
            );
        }
        let busy = call_of("/busy").await.unwrap_err();
        let retry_after = Some(Duration::from_secs(3));
        assert_eq!(busy.class, ToolErrorClass::Transient { retry_after });
        assert!(busy.may_have_arrived());
    }

    #[tokio::test]
    async fn a_call_that_found_no_server_has_surely_not_arrived() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let tool = tool(at, "/", &["127.0.0.1"]).unwrap();
        let error = tool.call(call()).await.unwrap_err();
        assert_eq!(error.code, "connect_failed");
        assert!(!error.may_have_arrived());
    }
}
