//! Server-sent events (WHATWG HTML, section 9.2.6): from bytes, however they are cut, to frames.

use std::collections::VecDeque;
use std::time::Duration;

/// Most bytes of one frame, and of one line: far above what a snapshot of a run can have.
const MAX_BYTES: usize = 64 << 20;

/// One event of a stream, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its kind; empty when the frame named none.
    pub event: String,
    /// Its data; several lines are joined by line feeds.
    pub data: String,
}

/// A line or a frame is longer than any that is meant to be sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than 64 MiB")]
pub struct TooLarge;

/// Reads one connection's bytes. What it has learnt outlives it: [`Parser::last_event_id`] and
/// [`Parser::retry`] are for the next connection.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    /// A line was read: a byte order mark is none any more.
    begun: bool,
    event: String,
    data: String,
    has_data: bool,
    id: Option<String>,
    last_event_id: Option<String>,
    retry: Option<Duration>,
    ready: VecDeque<Frame>,
}

impl Parser {
    /// Takes the next bytes of the connection.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        for &byte in bytes {
            let ends_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if ends_cr => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.end_of_line(&String::from_utf8_lossy(&line));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_BYTES {
                return Err(TooLarge);
            }
        }
        Ok(())
    }

    /// The next whole frame. One that the connection's end cut short never comes.
    pub fn frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// The id of the last event that ended; an event without one does not change it.
    pub fn last_event_id(&self) -> Option<&str> {
        self.last_event_id.as_deref()
    }

    /// How long the server wants a client to wait before it connects again.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn end_of_line(&mut self, line: &str) {
        let line = if self.begun {
            line
        } else {
            self.begun = true;
            line.strip_prefix('\u{feff}').unwrap_or(line)
        };
        if line.is_empty() {
            self.dispatch();
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis);
            }
            _ => {} // a comment, or a field of a later standard
        }
    }

    fn dispatch(&mut self) {
        if let Some(id) = self.id.take() {
            self.last_event_id = Some(id);
        }
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            self.ready.push_back(Frame { event, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(event: &str, data: &str) -> Frame {
        Frame {
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, Parser) {
        let mut parser = Parser::default();
        for chunk in chunks {
            parser.push(chunk).unwrap();
        }
        let frames = std::iter::from_fn(|| parser.frame()).collect();
        (frames, parser)
    }

    const STREAM: &str = "\u{feff}retry: 2000\n\n\
        : heartbeat\n\n\
        event: run.queued\nid: 1-1\ndata: {\"id\":\"1-1\"}\n\n\
        event: größer\r\nid: 1-2\r\ndata: a\r\ndata:\r\ndata:  b\r\n\r\n\
        event: stream.truncated\rdata: {}\r\r\
        id: 1-3\n\n\
        event: cut\nid: 1-4\ndata: short";

    fn expected() -> Vec<Frame> {
        vec![
            frame("run.queued", "{\"id\":\"1-1\"}"),
            frame("größer", "a\n\n b"),
            frame("stream.truncated", "{}"),
        ]
    }

    #[test]
    fn frames_comments_and_lines_are_told_apart() {
        let (frames, parser) = parse([STREAM.as_bytes()]);
        assert_eq!(frames, expected());
        assert_eq!(parser.last_event_id(), Some("1-3"));
        assert_eq!(parser.retry(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_frame_that_was_cut_does_not_move_the_cursor() {
        let (frames, parser) = parse([&b"id: 1-1\ndata: a\n\nid: 1-2\ndata: b\n"[..]]);
        assert_eq!(frames, [frame("", "a")]);
        assert_eq!(parser.last_event_id(), Some("1-1"));
    }

    #[test]
    fn fields_that_are_not_understood_are_left_out() {
        let (frames, parser) = parse([&b"retry: soon\nid: a\0b\nwhat: x\ndata\n\n"[..]]);
        assert_eq!(frames, [frame("", "")]);
        assert_eq!((parser.last_event_id(), parser.retry()), (None, None));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        let outcome = (0..=64).try_for_each(|_| parser.push(&chunk));
        assert_eq!(outcome, Err(TooLarge));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_bytes_are_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut rest = STREAM.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts.into_iter().rev() {
                let (before, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(after);
                rest = before;
            }
            chunks.push(rest);
            let (frames, parser) = parse(chunks.into_iter().rev());
            prop_assert_eq!(frames, expected());
            prop_assert_eq!(parser.last_event_id(), Some("1-3"));
        }
    }
}
