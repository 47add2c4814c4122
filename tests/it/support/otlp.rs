//! An OTLP endpoint (HTTP, protobuf) that keeps the spans that it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A span, with its ids in hexadecimal and its values as text.
#[derive(Debug, Clone)]
pub struct Received {
    pub name: String,
    pub kind: i32,
    pub trace: String,
    pub id: String,
    /// Empty at the beginning of a trace.
    pub parent: String,
    pub links: Vec<(String, String)>,
    pub failed: bool,
    pub attributes: BTreeMap<String, String>,
    /// `service.name` and `service.instance.id` of the process.
    pub service: String,
    pub instance: String,
    pub schema: String,
}

impl Received {
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

pub const INTERNAL: i32 = 1;
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;
pub const PRODUCER: i32 = 4;
pub const CONSUMER: i32 = 5;

/// The endpoint. It ends when this is dropped.
pub struct Otlp {
    pub url: String,
    spans: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Otlp {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let spans: Arc<Mutex<Vec<Received>>> = Arc::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(spans.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, spans, task }
    }

    /// Everything so far.
    pub fn spans(&self) -> Vec<Received> {
        self.spans.lock().unwrap().clone()
    }

    /// What there is so far of a trace.
    pub fn trace(&self, id: &str) -> Vec<Received> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace == id);
        spans
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(spans): State<Arc<Mutex<Vec<Received>>>>, body: Bytes) -> impl IntoResponse {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut spans = spans.lock().unwrap();
    for of_process in request.resource_spans {
        let process = of_process.resource.unwrap_or_default();
        let process = attributes(process.attributes);
        let named = |name: &str| process.get(name).cloned().unwrap_or_default();
        for of_scope in of_process.scope_spans {
            for span in of_scope.spans {
                spans.push(Received {
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    links: span
                        .links
                        .iter()
                        .map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)))
                        .collect(),
                    failed: span.status.is_some_and(|status| status.code == 2),
                    name: span.name,
                    kind: span.kind,
                    attributes: attributes(span.attributes),
                    service: named("service.name"),
                    instance: named("service.instance.id"),
                    schema: of_scope.schema_url.clone(),
                });
            }
        }
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    list.into_iter()
        .map(|attribute| (attribute.key, text(attribute.value)))
        .collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::ArrayValue(list)) => {
            let texts = list.values.into_iter().map(|value| text(Some(value)));
            texts.collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}
