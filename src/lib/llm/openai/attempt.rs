//! One HTTP request and its answer, under async-openai's typed calls.
//!
//! Everything that can go wrong on the wire is decided here, where the headers are still at hand: the
//! library sees only answers that succeeded and that it can decode. (It logs in full those that it
//! cannot, conversation included, and reads any length.)

use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use bytes::Bytes;
use jiff::Timestamp;
use reqwest::{Client, Response};
use secrecy::{ExposeSecret, SecretString};
use tower::Service;

use super::{failure, wire};
use crate::llm::LlmError;

/// Bytes of an answer that are read at most.
pub(super) const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of an error's body that are read at most: enough for its message.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The service that async-openai calls: sends each request once through `http`.
pub(super) fn service(
    http: Client,
    api_key: SecretString,
) -> impl Service<
    HttpRequestFactory,
    Response = Response,
    Error = OpenAIError,
    Future = impl Future<Output = Result<Response, OpenAIError>> + Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static {
    tower::service_fn(move |request: HttpRequestFactory| {
        let http = http.clone();
        let api_key = api_key.clone();
        async move {
            let request = request.build().await?;
            let answer = attempt(&http, request, &api_key).await;
            answer.map_err(|error| OpenAIError::Boxed(Box::new(error)))
        }
    })
}

async fn attempt(
    http: &Client,
    request: reqwest::Request,
    api_key: &SecretString,
) -> Result<Response, LlmError> {
    let mut response = send(http, request, api_key).await?;
    let body = wire::normalise(&whole(&mut response).await?).map_err(|e| failure::malformed(&e))?;
    Ok(http::Response::new(Bytes::from(body)).into())
}

/// Sends the request; the answer has succeeded, and its body is not read.
pub(super) async fn send(
    http: &Client,
    request: reqwest::Request,
    api_key: &SecretString,
) -> Result<Response, LlmError> {
    let mut response = http.execute(request).await.map_err(failure::of_transport)?;
    let status = response.status();
    if !status.is_success() {
        let (body, _cut) = read(&mut response, MAX_ERROR_BYTES)
            .await
            .unwrap_or_default();
        return Err(failure::of_status(
            status,
            response.headers(),
            &body,
            api_key.expose_secret(),
            Timestamp::now(),
        ));
    }
    Ok(response)
}

/// The body of an answer.
pub(super) async fn whole(response: &mut Response) -> Result<Vec<u8>, LlmError> {
    let (body, cut) = read(response, MAX_ANSWER_BYTES)
        .await
        .map_err(failure::of_transport)?;
    if cut {
        return Err(failure::too_large());
    }
    Ok(body)
}

/// At most `limit` bytes of the body, and whether there were more.
async fn read(response: &mut Response, limit: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let expected = response
        .content_length()
        .map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let mut body = Vec::with_capacity(expected.min(limit).min(MAX_ERROR_BYTES));
    while let Some(chunk) = response.chunk().await? {
        if chunk.len() > limit - body.len() {
            body.extend_from_slice(&chunk[..limit - body.len()]);
            return Ok((body, true));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, false))
}
