//! JSON bodies: capped while they arrive, checked for depth before they are parsed, and refused with
//! the field that is wrong.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use super::scope::Scope;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance;

/// A JSON body and its bytes.
#[derive(Debug)]
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    bytes: Bytes,
}

impl<T> JsonBody<T> {
    /// The hash that binds an `Idempotency-Key`, where there is one, to what was asked for.
    pub(super) fn fingerprint(&self, query: &str, wanted: bool) -> String {
        if !wanted {
            return String::new();
        }
        // It parsed as `T` before, so it does as a value; one that was left out is none.
        let value: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        governance::fingerprint(&value, query)
    }
}

impl<T: Default> JsonBody<T> {
    fn absent() -> Self {
        Self {
            value: T::default(),
            bytes: Bytes::new(),
        }
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let bytes = read(request, state).await?;
        let value = parse(&bytes, state.settings().max_json_depth)?;
        Ok(Self { value, bytes })
    }
}

/// As [`JsonBody`], for a route whose body may be left out.
#[derive(Debug)]
pub(super) struct OptionalBody<T>(pub(super) JsonBody<T>);

impl<T: DeserializeOwned + Default> FromRequest<ApiState> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let absent = !request.headers().contains_key(CONTENT_TYPE)
            && axum::body::HttpBody::size_hint(request.body()).exact() == Some(0);
        if absent {
            return Ok(Self(JsonBody::absent()));
        }
        let bytes = read(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(JsonBody::absent()));
        }
        let value = parse(&bytes, state.settings().max_json_depth)?;
        Ok(Self(JsonBody { value, bytes }))
    }
}

async fn read(request: Request, state: &ApiState) -> Result<Bytes, ApiError> {
    let settings = state.settings();
    let scope = request.extensions().get::<Scope>().cloned();
    check_type(request.headers())?;
    let cap = settings.max_body_bytes.0;
    let declared = request.headers().get(CONTENT_LENGTH);
    let declared = declared.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| usize::try_from(n).map_or(true, |n| n > cap)) {
        return Err(too_large(cap));
    }
    let body = collect(request.into_body(), cap);
    let bytes = tokio::time::timeout(settings.body_timeout_ms.duration(), body)
        .await
        .map_err(|_| ApiError::new(ErrorCode::BodyTimeout))??;
    if let Some(scope) = scope {
        let mut notes = scope.notes();
        let governance = &state.parts.governance;
        notes.input_hash = Some(governance.hash_input(notes.tenant.as_ref(), &bytes));
    }
    Ok(bytes)
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = || ApiError::new(ErrorCode::UnsupportedMediaType);
    let encoded = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"));
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(given), None, false) = (types.next(), types.next(), encoded) else {
        return Err(unsupported());
    };
    let given = given.to_str().map_err(|_| unsupported())?;
    let mut parts = given.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|t| t.eq_ignore_ascii_case("application/json"));
    let utf8 = |parameter: &str| {
        let Some((name, value)) = parameter.split_once('=') else {
            return parameter.is_empty();
        };
        !name.eq_ignore_ascii_case("charset")
            || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    };
    if json && parts.all(utf8) {
        Ok(())
    } else {
        Err(unsupported())
    }
}

async fn collect(body: Body, cap: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            ApiError::new(ErrorCode::InvalidJson).detail("the body did not arrive whole")
        })?;
        if bytes.len() + chunk.len() > cap {
            return Err(too_large(cap));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn too_large(cap: usize) -> ApiError {
    ApiError::new(ErrorCode::BodyTooLarge)
        .detail(format!("the body has more than {cap} bytes"))
        .details(serde_json::json!({ "max_bytes": cap }))
}

fn parse<T: DeserializeOwned>(bytes: &[u8], max_depth: usize) -> Result<T, ApiError> {
    if is_deeper(bytes, max_depth) {
        return Err(ApiError::new(ErrorCode::BodyTooDeep)
            .detail(format!("more than {max_depth} levels of nesting")));
    }
    // An array would be taken for the fields of a struct in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        let array = serde_json::from_slice::<serde::de::IgnoredAny>(bytes);
        return Err(array.map_or_else(
            |error| malformed(&error),
            |_| ApiError::field("", "expected an object"),
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json);
    match parsed {
        Ok(value) => match json.end() {
            Ok(()) => Ok(value),
            Err(error) => Err(malformed(&error)),
        },
        Err(error) if error.inner().is_data() => {
            // What does not fit may stand before what is not JSON at all.
            if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
                return Err(malformed(&error));
            }
            Err(schema_error(error.path(), &error.inner().to_string()))
        }
        Err(error) => Err(malformed(error.inner())),
    }
}

fn malformed(error: &serde_json::Error) -> ApiError {
    let place = match (error.line(), error.column()) {
        (0, _) => String::new(),
        (line, column) => format!(" at line {line}, column {column}"),
    };
    ApiError::new(ErrorCode::InvalidJson).detail(format!("the body is not JSON{place}"))
}

/// Whether arrays and objects are nested more than `max` deep. Looks at brackets outside strings, so
/// it is right for what is JSON and harmless for what is not.
fn is_deeper(bytes: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Turns what serde says into a field and a text that shows nothing of the value.
fn schema_error(path: &serde_path_to_error::Path, message: &str) -> ApiError {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => push(&mut pointer, &index.to_string()),
            Segment::Map { key } => push(&mut pointer, key),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    let message = message
        .rsplit_once(" at line ")
        .map_or(message, |(text, _)| text);
    let quoted = message.split('`').nth(1).unwrap_or_default();
    let (problem, named) = if message.starts_with("missing field") {
        ("is required", true)
    } else if message.starts_with("unknown field") {
        ("is not a field of this request", true)
    } else if message.starts_with("duplicate field") {
        ("occurs twice", true)
    } else {
        let expected = message.split_once(", expected ");
        let text = expected.map_or_else(
            || message.to_owned(),
            |(_, what)| format!("expected {what}"),
        );
        return ApiError::field(pointer, text);
    };
    if named && !pointer.ends_with(&format!("/{}", escape(quoted))) {
        push(&mut pointer, quoted);
    }
    ApiError::field(pointer, problem)
}

/// Appends a segment of a JSON pointer (RFC 6901), cut to what is worth showing.
fn push(pointer: &mut String, segment: &str) {
    let segment: String = segment.chars().take(64).collect();
    pointer.push('/');
    pointer.push_str(&escape(&segment));
}

fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)] // only whether it parses matters
    struct Sample {
        goal: String,
        #[serde(default)]
        count: Option<u32>,
        #[serde(default)]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Item {
        id: String,
    }

    fn error(text: &str) -> ApiError {
        parse::<Sample>(text.as_bytes(), 4).unwrap_err()
    }

    fn field(text: &str) -> (String, String) {
        let error = error(text);
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{text}: {error}");
        let field = error.details.unwrap()["field"].as_str().unwrap().to_owned();
        (field, error.detail)
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for text in [
            "",
            "{",
            "{\"goal\":\"x\",}",
            "{\"goal\":\"x\"} x",
            "{'goal':1}",
            "{\"goal\":1,,}",
            "\u{feff}{}",
        ] {
            assert_eq!(error(text).code, ErrorCode::InvalidJson, "{text}");
        }
        let invalid_utf8 = parse::<Sample>(b"{\"goal\":\"\xff\"}", 4).unwrap_err();
        assert_eq!(invalid_utf8.code, ErrorCode::InvalidJson);
    }

    #[test]
    fn the_wrong_field_is_named() {
        assert_eq!(field("{}").0, "/goal");
        assert_eq!(field(r#"{"goal":1}"#).0, "/goal");
        assert_eq!(field(r#"{"goal":"x","cuont":1}"#).0, "/cuont");
        assert_eq!(field(r#"{"goal":"x","count":-1}"#).0, "/count");
        assert_eq!(field(r#"{"goal":"x","goal":"y"}"#).0, "/goal");
        assert_eq!(
            field(r#"{"goal":"x","items":[{"id":"a"},{}]}"#).0,
            "/items/1/id"
        );
        assert_eq!(
            field(r#"{"goal":"x","items":[{"id":"a","b/c":1}]}"#).0,
            "/items/0/b~1c"
        );
        assert_eq!(field("[]").0, "");
        assert_eq!(field(r#" ["x", 1, []]"#).0, "");
        assert_eq!(error("[1,").code, ErrorCode::InvalidJson);
        assert_eq!(field("7").0, "");
    }

    #[test]
    fn the_value_is_not_repeated() {
        for text in [r#"{"goal":"x","count":"sesame"}"#, r#"{"goal":["sesame"]}"#] {
            let (_, detail) = field(text);
            assert!(!detail.contains("sesame"), "{detail}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert!(!is_deeper(br#"{"a":["[[[[\"[[["]}"#, 2));
        assert!(is_deeper(b"[[[]]]", 2));
        assert!(!is_deeper(b"[[],[],[]]", 2));
        let error = error(&"[".repeat(100_000));
        assert_eq!(error.code, ErrorCode::BodyTooDeep);
    }

    proptest! {
        #[test]
        fn depth_is_that_of_the_value(depth in 0_usize..12, max in 0_usize..12) {
            let text = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
            prop_assert_eq!(is_deeper(text.as_bytes(), max), depth > max);
        }
    }

    #[test]
    fn only_plain_json_is_taken() {
        let check = |content_type: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            check_type(&headers).is_ok()
        };
        assert!(check("application/json"));
        assert!(check("Application/JSON; charset=\"UTF-8\""));
        assert!(!check("application/json; charset=latin1"));
        assert!(!check("text/plain"));
        assert!(!check("application/x-www-form-urlencoded"));
        assert!(check_type(&HeaderMap::new()).is_err());
        let mut encoded = HeaderMap::new();
        encoded.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        encoded.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_type(&encoded).is_err());
    }
}
