//! What can go wrong with a fetch, and what the caller may do about it.

use std::time::Duration;

use super::policy::Block;

/// What a caller may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The policy refuses the URL, or one it leads to: final.
    Refused,
    /// May succeed later.
    Transient,
    /// Will fail again.
    Permanent,
}

/// A fetch that gave no page. The texts are safe to show: none comes from the network or from a
/// library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The policy refused a URL.
    #[error("the URL may not be fetched ({0})")]
    Blocked(Block),
    /// The server answered with a status other than success.
    #[error("the server answered {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// How long the server asked to wait.
        retry_after: Option<Duration>,
    },
    /// The whole fetch took longer than it may.
    #[error("the fetch took longer than it may")]
    Timeout,
    /// The look-up of the host failed.
    #[error("the host's name could not be resolved")]
    Unresolved,
    /// No connection, or no agreement on TLS.
    #[error("the server could not be reached")]
    Connect,
    /// The connection ended before the answer did, or the answer was not HTTP.
    #[error("the answer was cut off or is not valid HTTP")]
    Interrupted,
    /// The headers are larger than is accepted.
    #[error("the answer's headers are too large")]
    HeadersTooLarge,
    /// The content is of no accepted type, or has none.
    #[error("content of this type is not accepted")]
    ContentType,
    /// The content is compressed although that was not asked for; it is not expanded.
    #[error("content with this encoding is not accepted")]
    ContentEncoding,
    /// A redirect that does not say where to.
    #[error("the server redirected to nowhere")]
    NoLocation,
}

impl FetchError {
    /// What the caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Blocked(_) => Class::Refused,
            // 408 and 425 ask for another try as 429 does.
            Self::Status {
                status: 408 | 425 | 429 | 500..,
                ..
            }
            | Self::Timeout
            | Self::Unresolved
            | Self::Connect
            | Self::Interrupted => Class::Transient,
            Self::Status { .. }
            | Self::HeadersTooLarge
            | Self::ContentType
            | Self::ContentEncoding
            | Self::NoLocation => Class::Permanent,
        }
    }

    /// The stable code, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Blocked(block) => block.reason.code(),
            Self::Status { .. } => "http_status",
            Self::Timeout => "timeout",
            Self::Unresolved => "name_not_resolved",
            Self::Connect => "connect_failed",
            Self::Interrupted => "interrupted",
            Self::HeadersTooLarge => "headers_too_large",
            Self::ContentType => "content_type_not_accepted",
            Self::ContentEncoding => "content_encoding_not_accepted",
            Self::NoLocation => "redirect_without_location",
        }
    }

    /// How long the server asked to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_transient_or_permanent() {
        let class = |status| {
            let retry_after = None;
            FetchError::Status {
                status,
                retry_after,
            }
            .class()
        };
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert_eq!(class(status), Class::Transient, "{status}");
        }
        for status in [204, 304, 400, 401, 403, 404, 410, 451] {
            assert_eq!(class(status), Class::Permanent, "{status}");
        }
    }
}
