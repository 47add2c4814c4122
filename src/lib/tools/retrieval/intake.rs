//! Finds the files that are to be added. Blocking: for the command line.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::corpus::{NewDocument, sha256};
use super::media::{self, Unreadable};

/// Files of one addition.
pub const MAX_FILES: usize = 10_000;
/// Folders that may lie within each other.
const MAX_DEPTH: usize = 64;
/// Bytes of a document's path.
const MAX_PATH_BYTES: usize = 1_024;

/// A file that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// Where it is.
    pub file: PathBuf,
    /// Its name in the corpus: from the name of the folder or file that was given downwards.
    pub path: String,
}

/// A file that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub file: PathBuf,
    /// The reason.
    pub reason: String,
}

/// What lies at the given places.
#[derive(Debug, Default)]
pub struct Found {
    /// To be added.
    pub files: Vec<FoundFile>,
    /// Left out.
    pub skipped: Vec<Skipped>,
}

/// Why nothing is added at all.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// A file or folder cannot be looked at.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There are more files than one addition takes.
    #[error("more than {MAX_FILES} files; add a part of them at a time")]
    TooMany,
}

/// Lists the documents at `places`, folders with all below them. Symbolic links and hidden files
/// are left out; so is what the corpus cannot read.
pub fn find(places: &[PathBuf]) -> Result<Found, IntakeError> {
    let mut walk = Walk::default();
    for place in places {
        let name = place_name(place)?;
        walk.visit(place, &name, 0)?;
    }
    Ok(walk.found)
}

/// Reads a file that was found.
pub fn read(found: &FoundFile) -> Result<NewDocument, String> {
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that the file has grown.
    let limit = media::MAX_BYTES as u64 + 1;
    File::open(&found.file)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    let extracted = media::extract(&found.path, &bytes).map_err(|why| why.to_string())?;
    Ok(NewDocument {
        path: found.path.clone(),
        content: sha256(&bytes),
        extracted,
    })
}

#[derive(Default)]
struct Walk {
    found: Found,
    names: HashSet<String>,
}

impl Walk {
    fn visit(&mut self, file: &Path, path: &str, depth: usize) -> Result<(), IntakeError> {
        let metadata = fs::symlink_metadata(file).map_err(|error| at(file, error))?;
        if metadata.is_symlink() {
            self.skip(file, "a symbolic link");
        } else if metadata.is_dir() {
            if depth == MAX_DEPTH {
                self.skip(file, "folders too deep");
            } else {
                self.visit_folder(file, path, depth)?;
            }
        } else if !metadata.is_file() {
            self.skip(file, "not a regular file");
        } else if path.len() > MAX_PATH_BYTES || path.chars().any(char::is_control) {
            self.skip(file, "its name is too long or has control characters");
        } else if media::media_type(path).is_none() {
            self.skip(file, &Unreadable::Type.to_string());
        } else if metadata.len() > media::MAX_BYTES as u64 {
            self.skip(file, &Unreadable::TooLarge.to_string());
        } else if !self.names.insert(path.to_owned()) {
            self.skip(file, &format!("another file is added as {path}"));
        } else if self.found.files.len() == MAX_FILES {
            return Err(IntakeError::TooMany);
        } else {
            self.found.files.push(FoundFile {
                file: file.to_owned(),
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    fn visit_folder(&mut self, folder: &Path, path: &str, depth: usize) -> Result<(), IntakeError> {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| at(folder, error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_name().to_str() {
                None => self.skip(&entry.path(), "its name is not UTF-8"),
                Some(name) if name.starts_with('.') => {}
                Some(name) => self.visit(&entry.path(), &format!("{path}/{name}"), depth + 1)?,
            }
        }
        Ok(())
    }

    fn skip(&mut self, file: &Path, reason: &str) {
        self.found.skipped.push(Skipped {
            file: file.to_owned(),
            reason: reason.to_owned(),
        });
    }
}

/// The last name of a place, also of one such as `.` or `docs/..`.
fn place_name(place: &Path) -> Result<String, IntakeError> {
    let name = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        Some(name.to_owned())
    };
    if let Some(name) = name(place) {
        return Ok(name);
    }
    let full = fs::canonicalize(place).map_err(|error| at(place, error))?;
    Ok(name(&full).unwrap_or_else(|| "root".to_owned()))
}

fn at(path: &Path, error: io::Error) -> IntakeError {
    IntakeError::Io {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_walked_without_links_and_hidden_files() {
        let temp = tempfile::tempdir().unwrap();
        let docs = temp.path().join("docs");
        fs::create_dir_all(docs.join("sub/.git")).unwrap();
        fs::write(docs.join("b.md"), "# B").unwrap();
        fs::write(docs.join("sub/a.txt"), "a").unwrap();
        fs::write(docs.join("sub/.git/c.md"), "hidden").unwrap();
        fs::write(docs.join("image.png"), [1, 2]).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", docs.join("link.txt")).unwrap();
        std::os::unix::fs::symlink(&docs, docs.join("loop")).unwrap();

        let found = find(&[
            docs.clone(),
            docs.join("b.md"),
            docs.join("sub/..").join("b.md"),
        ])
        .unwrap();
        let paths: Vec<_> = found.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["docs/b.md", "docs/sub/a.txt", "b.md"]);
        let skipped: Vec<_> = found
            .skipped
            .iter()
            .map(|s| s.file.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(skipped, ["image.png", "link.txt", "loop", "b.md"]);
        assert!(found.skipped[3].reason.contains("added as b.md"));

        assert_eq!(read(&found.files[0]).unwrap().extracted.title, "B");
        assert!(matches!(
            find(&[docs.join("none")]),
            Err(IntakeError::Io { .. })
        ));
    }

    #[test]
    fn large_and_unreadable_files_are_left_out() {
        let temp = tempfile::tempdir().unwrap();
        let large = temp.path().join("large.txt");
        File::create(&large)
            .unwrap()
            .set_len(media::MAX_BYTES as u64 + 1)
            .unwrap();
        let found = find(&[large]).unwrap();
        assert!(found.files.is_empty() && found.skipped[0].reason.contains("5 MiB"));

        let binary = temp.path().join("binary.txt");
        fs::write(&binary, [0xff]).unwrap();
        let found = find(&[binary]).unwrap();
        assert_eq!(read(&found.files[0]).unwrap_err(), "not UTF-8 text");
    }
}
