//! Documents out of files, one at a time: the formats of [`TextFormat`]. Files ending in `.gz` are unpacked on the way.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use formats::campaign::{RequestText, TextFormat};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, RowAccessor};
use parquet::schema::types::Type;

/// A document as its file has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its title, in formats that mark one.
    pub title: Option<String>,
    /// All of its text, the title included where the file repeats it there.
    pub text: String,
}

/// Documents of one file, in order. Empty ones are left out; white space around a document is removed.
pub type Documents = Box<dyn Iterator<Item = Result<Document>>>;

/// Opens a file of documents.
///
/// # Errors
/// When it cannot be opened, or the Parquet column is missing; later errors come out of the iterator.
pub fn read(path: &Path, format: &TextFormat) -> Result<Documents> {
    let name = path.display().to_string();
    let documents: Documents = match format {
        TextFormat::Parquet(column) => untitled(parquet(path, column)?),
        TextFormat::Whole => {
            let mut text = String::new();
            text_reader(path)?.read_to_string(&mut text).with_context(|| format!("{name} is not UTF-8 text"))?;
            untitled(std::iter::once(Ok(text)))
        }
        TextFormat::JsonLines(field) => {
            let field = field.clone();
            let lines = lines(text_reader(path)?, b"\n".to_vec());
            untitled(lines.enumerate().map(move |(i, line)| {
                line.and_then(|line| json_field(&line, &field)).with_context(|| format!("line {}", i + 1))
            }))
        }
        TextFormat::Separator(separator) => {
            if separator.is_empty() {
                bail!("the separator is empty");
            }
            untitled(lines(text_reader(path)?, separator.clone().into_bytes()))
        }
        TextFormat::WikiDocs => Box::new(grouped(lines(text_reader(path)?, b"\n".to_vec()), |line| match line {
            line if line.starts_with("<doc ") => Cut::Before { keep: false, title: title_attribute(line) },
            "</doc>" => Cut::Before { keep: false, title: None },
            _ => Cut::No,
        })),
        TextFormat::WikiText => Box::new(grouped(lines(text_reader(path)?, b"\n".to_vec()), wikitext_cut)),
        TextFormat::WikiTextParquet(column) => {
            // Rows are the raw lines with their line ends.
            let rows = parquet(path, column)?;
            let lines = rows.map(|row| row.map(|line| line.trim_end_matches('\n').to_owned()));
            Box::new(grouped(lines, wikitext_cut))
        }
        TextFormat::Requests(text) => {
            let text = *text;
            let lines = lines(text_reader(path)?, b"\n".to_vec());
            let mut previous = String::new();
            // An item has a line for each choice; what the line before gave is not given again.
            untitled(lines.enumerate().filter_map(move |(i, line)| {
                let found = line.and_then(|line| request(&line, text));
                match found.with_context(|| format!("line {}", i + 1)) {
                    Ok(text) if text == previous => None,
                    Ok(text) => {
                        previous.clone_from(&text);
                        Some(Ok(text))
                    }
                    Err(e) => Some(Err(e)),
                }
            }))
        }
    };
    Ok(Box::new(documents.filter_map(move |document| {
        let document = document.with_context(|| format!("cannot read documents of {name}"));
        match document {
            Ok(Document { text, .. }) if text.trim().is_empty() => None,
            Ok(Document { title, text }) => Some(Ok(Document { title, text: text.trim().to_owned() })),
            Err(e) => Some(Err(e)),
        }
    })))
}

fn untitled(texts: impl Iterator<Item = Result<String>> + 'static) -> Documents {
    Box::new(texts.map(|text| Ok(Document { title: None, text: text? })))
}

fn text_reader(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let zipped = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    Ok(if zipped {
        Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
    } else {
        Box::new(BufReader::with_capacity(1 << 18, file))
    })
}

/// Pieces between occurrences of `separator`, without it.
fn lines(mut reader: Box<dyn BufRead>, separator: Vec<u8>) -> impl Iterator<Item = Result<String>> {
    let last = separator.last().copied().unwrap_or(b'\n');
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut piece = Vec::new();
        loop {
            match reader.read_until(last, &mut piece) {
                Err(e) => {
                    done = true;
                    return Some(Err(e.into()));
                }
                Ok(0) => {
                    done = true;
                    if piece.is_empty() {
                        return None;
                    }
                    break;
                }
                Ok(_) if piece.ends_with(&separator) => {
                    piece.truncate(piece.len() - separator.len());
                    break;
                }
                Ok(_) => {}
            }
        }
        let text = String::from_utf8(piece).context("the text is not UTF-8");
        done |= text.is_err();
        Some(text)
    })
}

enum Cut {
    No,
    /// A new document starts here; `keep` says whether the line belongs to its text.
    Before {
        keep: bool,
        title: Option<String>,
    },
}

/// Lines put together into documents.
fn grouped(
    mut lines: impl Iterator<Item = Result<String>>,
    cut: impl Fn(&str) -> Cut,
) -> impl Iterator<Item = Result<Document>> {
    let mut open = Some(Document::default());
    std::iter::from_fn(move || {
        loop {
            let line = match lines.next() {
                None => return open.take().map(Ok),
                Some(Err(e)) => return Some(Err(e)),
                Some(Ok(line)) => line,
            };
            let document = open.get_or_insert_default();
            match cut(&line) {
                Cut::No => {
                    document.text.push_str(&line);
                    document.text.push('\n');
                }
                Cut::Before { keep, title } => {
                    let text = if keep { line + "\n" } else { String::new() };
                    return Some(Ok(std::mem::replace(document, Document { title, text })));
                }
            }
        }
    })
}

/// Unconditional copies in evaluation requests (answers without their question) have ids from here on.
const UNCONDITIONAL: u64 = 1_000_000;

/// The text of an evaluation request; empty for an unconditional copy.
fn request(line: &str, text: RequestText) -> Result<String> {
    if line.trim().is_empty() {
        return Ok(String::new());
    }
    let root: serde_json::Value = serde_json::from_str(line).context("not JSON")?;
    let id = root.get("doc_id").and_then(serde_json::Value::as_u64).context("no number `doc_id`")?;
    if id >= UNCONDITIONAL {
        return Ok(String::new());
    }
    let doc = root.get("doc").context("no `doc`")?;
    let query = doc.get("query").and_then(|v| v.as_str()).context("no string `doc.query`")?;
    Ok(match text {
        RequestText::Passage => query.split("\nQuestion:").next().unwrap_or(query).trim().to_owned(),
        RequestText::Gold => {
            let gold = doc.get("gold").and_then(serde_json::Value::as_u64).context("no number `doc.gold`")?;
            let choice = doc.get("choices").and_then(|all| all.get(usize::try_from(gold).ok()?));
            let choice = choice.and_then(|v| v.as_str()).context("no string `doc.choices[doc.gold]`")?;
            let (query, choice) = (query.trim(), choice.trim());
            let joined = choice.starts_with([',', '.', ';', ':', '!', '?', '\'', ')']);
            format!("{query}{}{choice}", if joined { "" } else { " " })
        }
    })
}

/// The title of `<doc id="1" url="…" title="Title">`.
fn title_attribute(line: &str) -> Option<String> {
    let (_, value) = line.split_once(" title=\"")?;
    let (title, _) = value.rsplit_once('"')?;
    Some(title.to_owned())
}

fn wikitext_cut(line: &str) -> Cut {
    wikitext_title(line).map_or(Cut::No, |title| Cut::Before { keep: true, title: Some(title.to_owned()) })
}

/// The title of ` = Title = `; ` = = Section = = ` has none.
fn wikitext_title(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix("= ").and_then(|l| l.strip_suffix(" ="))?.trim();
    (!inner.is_empty() && !inner.starts_with('=') && !inner.ends_with('=')).then_some(inner)
}

/// The string at a dotted path of a JSON object.
fn json_field(line: &str, path: &str) -> Result<String> {
    if line.trim().is_empty() {
        return Ok(String::new());
    }
    let mut value: &serde_json::Value = &serde_json::from_str(line).context("not JSON")?;
    for key in path.split('.') {
        value = value.get(key).with_context(|| format!("no field `{path}`"))?;
    }
    value.as_str().map(str::to_owned).with_context(|| format!("field `{path}` is no string"))
}

/// Values of a string column, row group by row group.
fn parquet(path: &Path, column: &str) -> Result<impl Iterator<Item = Result<String>> + use<>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let reader = SerializedFileReader::new(file).with_context(|| format!("{} is no Parquet file", path.display()))?;
    let schema = reader.metadata().file_metadata().schema();
    let field = schema.get_fields().iter().find(|f| f.name() == column);
    let Some(field) = field else {
        let names: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
        bail!("{} has no column `{column}`; there are {}", path.display(), names.join(", "));
    };
    let only = Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(field)]).build()?;
    let rows = RowIter::from_file_into(Box::new(reader)).project(Some(only))?;
    let column = column.to_owned();
    Ok(rows.map(move |row| {
        let row = row.context("a damaged row")?;
        match row.get_column_iter().next() {
            Some((_, Field::Null)) => Ok(String::new()),
            _ => row.get_string(0).cloned().with_context(|| format!("column `{column}` holds no strings")),
        }
    }))
}
