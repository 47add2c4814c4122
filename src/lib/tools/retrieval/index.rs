//! A tenant's search index: BM25 over stemmed words. Blocking; callers run it apart from async tasks.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use tantivy::collector::{Count, TopDocs};
use tantivy::query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, Occur, Query, TermQuery};
use tantivy::schema::{
    Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions, Value,
};
use tantivy::snippet::SnippetGenerator;
use tantivy::tokenizer::{Language, StopWordFilter, TextAnalyzer, TokenStream};
use tantivy::{
    IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, TantivyError, Term,
};

use super::corpus::Document;
use super::passages;
use super::workspace::IndexFolder;

/// Memory of the writer while it builds: tantivy asks for at least 15 MB a thread.
const WRITER_BYTES: usize = 20_000_000;
/// Different words of a query that are looked for.
const MAX_QUERY_WORDS: usize = 64;
/// Characters of a snippet.
const MAX_SNIPPET_CHARS: usize = 400;
/// tantivy's analyzer for English: words, lower case, stems.
const ANALYZER: &str = "en_stem";

/// A passage that matches a query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hit {
    /// The document's title.
    pub title: String,
    /// Plain text around the words that match, at most 400 characters.
    pub snippet: String,
    /// BM25 score; comparable within one answer only.
    pub score: f64,
    /// The document's path and, after `#`, the heading's anchor.
    pub source: String,
}

/// An index under construction. Searches see it by snapshots only.
pub struct TenantIndex {
    index: tantivy::Index,
    fields: Fields,
    reader: IndexReader,
    /// Kept while changes are not committed.
    writer: Option<IndexWriter>,
    objects: HashSet<String>,
    folder: Arc<IndexFolder>,
}

/// An index as it was when it was committed; later changes do not touch it.
pub struct Snapshot {
    searcher: Searcher,
    fields: Fields,
    /// The words of a query, without those that are everywhere, and with them.
    analyzers: [TextAnalyzer; 2],
    _folder: Arc<IndexFolder>,
}

#[derive(Debug, Clone, Copy)]
struct Fields {
    /// The object that the passage comes from: what it is removed by.
    object: Field,
    source: Field,
    title: Field,
    heading: Field,
    body: Field,
}

impl TenantIndex {
    /// An empty index in `folder`.
    pub fn create(folder: IndexFolder) -> Result<Self, TantivyError> {
        let (schema, fields) = schema();
        let index = tantivy::Index::create_in_dir(folder.path(), schema)?;
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()?;
        Ok(Self {
            index,
            fields,
            reader,
            writer: None,
            objects: HashSet::new(),
            folder: Arc::new(folder),
        })
    }

    /// The objects that are in the index.
    pub fn objects(&self) -> &HashSet<String> {
        &self.objects
    }

    /// Adds a document under the name of its object.
    pub fn add(&mut self, object: &str, document: &Document) -> Result<(), TantivyError> {
        let fields = self.fields;
        let writer = self.writer()?;
        for passage in passages::split(&document.text, &document.media_type) {
            let mut row = TantivyDocument::new();
            row.add_text(fields.object, object);
            row.add_text(fields.title, &document.title);
            row.add_text(fields.body, &passage.text);
            let mut source = document.path.clone();
            if let Some(heading) = &passage.heading {
                row.add_text(fields.heading, heading);
                source.push('#');
                source.push_str(&anchor(heading));
            }
            row.add_text(fields.source, source);
            writer.add_document(row)?;
        }
        self.objects.insert(object.to_owned());
        Ok(())
    }

    /// Removes an object's passages.
    pub fn remove(&mut self, object: &str) -> Result<(), TantivyError> {
        let term = Term::from_field_text(self.fields.object, object);
        self.writer()?.delete_term(term);
        self.objects.remove(object);
        Ok(())
    }

    /// Commits and shows what was done since the last time.
    pub fn commit(&mut self) -> Result<Snapshot, TantivyError> {
        if let Some(mut writer) = self.writer.take() {
            writer.commit()?;
            writer.wait_merging_threads()?;
        }
        self.reader.reload()?;
        let all = self.index.tokenizer_for_field(self.fields.body)?;
        let mut rare = TextAnalyzer::builder(tantivy::tokenizer::SimpleTokenizer::default())
            .filter(tantivy::tokenizer::RemoveLongFilter::limit(40))
            .filter(tantivy::tokenizer::LowerCaser)
            .dynamic();
        if let Some(stop_words) = StopWordFilter::new(Language::English) {
            rare = rare.filter_dynamic(stop_words);
        }
        let rare = rare
            .filter_dynamic(tantivy::tokenizer::Stemmer::new(Language::English))
            .build();
        Ok(Snapshot {
            searcher: self.reader.searcher(),
            fields: self.fields,
            analyzers: [rare, all],
            _folder: Arc::clone(&self.folder),
        })
    }

    fn writer(&mut self) -> Result<&mut IndexWriter, TantivyError> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.index.writer_with_num_threads(1, WRITER_BYTES)?,
        };
        Ok(self.writer.insert(writer))
    }
}

impl Snapshot {
    /// The best `limit` passages for any of the words in `query`, and how many match. The query is
    /// plain text without any syntax.
    pub fn search(&self, query: &str, limit: usize) -> Result<(Vec<Hit>, usize), TantivyError> {
        let words = self.words(query);
        if words.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let query = self.any_of(&words);
        let collector = (TopDocs::with_limit(limit.max(1)).order_by_score(), Count);
        let (best, total) = self.searcher.search(&query, &collector)?;
        let mut snippets = SnippetGenerator::create(&self.searcher, &query, self.fields.body)?;
        snippets.set_max_num_chars(MAX_SNIPPET_CHARS);
        let hits = best.into_iter().take(limit).map(|(score, address)| {
            let row: TantivyDocument = self.searcher.doc(address)?;
            let text = |field| row.get_first(field).and_then(|v| v.as_str()).unwrap_or("");
            let body = text(self.fields.body);
            let snippet = snippets.snippet(body);
            let fragment = if snippet.is_empty() {
                body
            } else {
                snippet.fragment()
            };
            Ok(Hit {
                title: text(self.fields.title).to_owned(),
                snippet: one_line(fragment),
                score: (f64::from(score) * 1e4).round() / 1e4,
                source: text(self.fields.source).to_owned(),
            })
        });
        Ok((hits.collect::<Result<_, TantivyError>>()?, total))
    }

    /// The query's words, each once; common ones count only when there are no others.
    fn words(&self, query: &str) -> Vec<String> {
        for analyzer in &self.analyzers {
            let mut analyzer = analyzer.clone();
            let mut stream = analyzer.token_stream(query);
            let mut words = Vec::new();
            while stream.advance() && words.len() < MAX_QUERY_WORDS {
                let word = &stream.token().text;
                if !words.contains(word) {
                    words.push(word.clone());
                }
            }
            if !words.is_empty() {
                return words;
            }
        }
        Vec::new()
    }

    /// Each word counts where it says most: in a title more than in a heading, there more than in
    /// the text; a passage with more of the words is better.
    fn any_of(&self, words: &[String]) -> BooleanQuery {
        let clause = |word: &String| {
            let fields = [
                (self.fields.title, 1.6),
                (self.fields.heading, 1.4),
                (self.fields.body, 1.0),
            ];
            let places = fields.map(|(field, boost)| {
                let term = Term::from_field_text(field, word);
                let query = TermQuery::new(term, IndexRecordOption::WithFreqs);
                Box::new(BoostQuery::new(Box::new(query), boost)) as Box<dyn Query>
            });
            let best = DisjunctionMaxQuery::with_tie_breaker(places.into(), 0.3);
            (Occur::Should, Box::new(best) as Box<dyn Query>)
        };
        BooleanQuery::new(words.iter().map(clause).collect())
    }
}

fn schema() -> (Schema, Fields) {
    let indexing = TextFieldIndexing::default()
        .set_tokenizer(ANALYZER)
        .set_index_option(IndexRecordOption::WithFreqs);
    let text = TextOptions::default().set_indexing_options(indexing);
    let mut schema = Schema::builder();
    let fields = Fields {
        object: schema.add_text_field("object", STRING),
        source: schema.add_text_field("source", STORED),
        title: schema.add_text_field("title", text.clone() | STORED),
        heading: schema.add_text_field("heading", text.clone()),
        body: schema.add_text_field("body", text | STORED),
    };
    (schema.build(), fields)
}

/// The anchor that code hosts give a heading: lower case, spaces to hyphens, punctuation gone.
fn anchor(heading: &str) -> String {
    let keep = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
        _ => None,
    };
    heading.to_lowercase().chars().filter_map(keep).collect()
}

fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(MAX_SNIPPET_CHARS) {
        Some((end, _)) => line[..end].to_owned(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_those_of_code_hosts() {
        assert_eq!(
            anchor("Write order (the heart: Redis decides)"),
            "write-order-the-heart-redis-decides"
        );
        assert_eq!(anchor("Über_uns"), "über_uns");
    }

    #[test]
    fn snippets_are_one_line_and_short() {
        assert_eq!(one_line(" a\n\n b\tc "), "a b c");
        assert_eq!(
            one_line(&"é".repeat(1_000)).chars().count(),
            MAX_SNIPPET_CHARS
        );
    }
}
