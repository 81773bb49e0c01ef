//! Counts idioms in the documentation, per 1,000 words. `prose.txt` has the patterns and the exempt pages. This module reads
//! Markdown, finds the patterns, and compares each page with the limit. It knows no grammar: a pattern is a sequence of words.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{Failed, say};
use crate::setup::root;

const LIST: &str = include_str!("../prose.txt");
const LIST_PATH: &str = "xtask/prose.txt";

/// The limit. Every pattern also matches some good sentences: the READMEs and design documents of tokio, regex, rustix, regalloc2
/// and others have 0.6 hits per 1,000 words (41,000 words, 2026-11-29).
const HITS_MAX_PER_1000: f64 = 1.5;

/// The length from which a page has its own limit. Two hits would exceed it on a shorter page, which counts in the sum only.
const PAGE_WORDS_MIN: usize = 300;

/// The pages: files, and `*` for each file or folder there. Records (docs/decisions, docs/archive, docs/edit-history) are not
/// checked.
const PAGES: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "plugin/*/README.md",
    "tests/README.md",
];

/// Fail if a page that is not exempt, or the sum of all pages, exceeds the limit, or if an exempt page does not.
pub(crate) fn check() -> Result<(), Failed> {
    say("xtask: checking prose for idioms");
    let list = List::parse(LIST)?;
    let (findings, summary) = list.judge(&list.pages()?);
    for finding in &findings {
        say(finding);
    }
    if findings.is_empty() {
        say(&format!("xtask: checking prose for idioms: {summary}"));
        return Ok(());
    }
    Err(Failed::new(format!("checking prose for idioms: {summary}"))
        .hint(format!(
            "the limit is {HITS_MAX_PER_1000} per 1,000 words, for each page of {PAGE_WORDS_MIN} words and for all together"
        ))
        .hint(format!("{LIST_PATH} has the plain words")))
}

/// Print the numbers of each page, and check them. With paths, print the hits in these files.
pub(crate) fn report(paths: &[OsString]) -> Result<(), Failed> {
    let list = List::parse(LIST)?;
    if paths.is_empty() {
        for page in list.pages()? {
            let exempt = list.exempt.contains(&page.path);
            say(&format!("{page}{}", if exempt { " (exempt)" } else { "" }));
        }
        return check();
    }
    for path in paths {
        let page = list.read(&path.to_string_lossy(), Path::new(path))?;
        say(&page.with_hits());
    }
    Ok(())
}

/// A sequence of words, with the advice for a replacement.
#[derive(Debug)]
struct Pattern {
    text: String,
    words: Vec<String>,
    at_sentence_start: bool,
    advice: String,
}

#[derive(Debug, Default)]
struct List {
    patterns: Vec<Pattern>,
    /// The pages that are not rewritten yet.
    exempt: Vec<String>,
    /// The pages that a program generates.
    generated: Vec<String>,
}

impl List {
    fn parse(text: &str) -> Result<Self, Failed> {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(path) = line.strip_prefix("exempt:") {
                list.exempt.push(path.trim().to_owned());
                continue;
            }
            if let Some(path) = line.strip_prefix("generated:") {
                list.generated.push(path.trim().to_owned());
                continue;
            }
            let failed =
                |problem: &str| Failed::new(format!("{LIST_PATH}:{number}: {problem}: `{line}`"));
            let (pattern, advice) = line
                .split_once(" => ")
                .or_else(|| line.split_once('\t'))
                .ok_or_else(|| failed("no ` => ` with the plain word after it"))?;
            let text = pattern.trim();
            let words: Vec<String> = words(text.trim_start_matches('^'))
                .into_iter()
                .map(|word| word.text)
                .collect();
            if words.is_empty() {
                return Err(failed("a pattern without a word"));
            }
            if list.patterns.iter().any(|other| other.text == text) {
                return Err(failed("a pattern that is in the list already"));
            }
            list.patterns.push(Pattern {
                text: text.to_owned(),
                words,
                at_sentence_start: text.starts_with('^'),
                advice: advice.trim().to_owned(),
            });
        }
        Ok(list)
    }

    /// The handwritten pages, in the order of [`PAGES`].
    fn pages(&self) -> Result<Vec<Page<'_>>, Failed> {
        let mut paths = Vec::new();
        for pattern in PAGES {
            paths.extend(expand(pattern)?);
        }
        for listed in self.exempt.iter().chain(&self.generated) {
            if !paths.contains(listed) {
                return Err(Failed::new(format!(
                    "{LIST_PATH} lists `{listed}`, which is no page"
                )));
            }
        }
        paths
            .iter()
            .filter(|path| !self.generated.contains(path))
            .map(|path| self.read(path, &root().join(path)))
            .collect()
    }

    /// The errors of the check, and the numbers of all pages together.
    fn judge(&self, pages: &[Page<'_>]) -> (Vec<String>, String) {
        let (exempt, checked): (Vec<&Page<'_>>, Vec<&Page<'_>>) = pages
            .iter()
            .partition(|page| self.exempt.contains(&page.path));
        let mut findings = Vec::new();
        let over = |page: &&Page<'_>| page.words >= PAGE_WORDS_MIN && page.is_dense();
        for page in checked.iter().copied().filter(over) {
            findings.push(page.with_hits());
        }
        for page in exempt.iter().filter(|page| !page.is_dense()) {
            findings.push(format!(
                "{page}: within the limit: take it off the list of exempt pages in {LIST_PATH}"
            ));
        }
        let hits = checked.iter().map(|page| page.hits.len()).sum();
        let words = checked.iter().map(|page| page.words).sum();
        if findings.is_empty() && per_1000(hits, words) > HITS_MAX_PER_1000 {
            findings.extend(checked.iter().map(|page| page.with_hits()));
        }
        let summary = format!("{} (exempt pages: {})", density(hits, words), exempt.len());
        (findings, summary)
    }

    fn read(&self, path: &str, file: &Path) -> Result<Page<'_>, Failed> {
        let text = fs::read_to_string(file)
            .map_err(|error| Failed::new(format!("cannot read `{path}`: {error}")))?;
        Ok(self.measure(path, &text))
    }

    fn measure(&self, path: &str, markdown: &str) -> Page<'_> {
        let words = words(markdown);
        let mut hits = Vec::new();
        let mut position = 0;
        while position < words.len() {
            let longest = self
                .patterns
                .iter()
                .filter(|pattern| pattern.matches(&words[position..]))
                .max_by_key(|pattern| pattern.words.len());
            position += longest.map_or(1, |pattern| {
                hits.push(Hit {
                    line: words[position].line,
                    pattern,
                });
                pattern.words.len()
            });
        }
        // Tables of numbers are not prose.
        let is_prose = |word: &&Word| word.text.contains(char::is_alphabetic);
        Page {
            path: path.to_owned(),
            words: words.iter().filter(is_prose).count(),
            hits,
        }
    }
}

impl Pattern {
    fn matches(&self, words: &[Word]) -> bool {
        words.len() >= self.words.len()
            && (words[0].starts_sentence || !self.at_sentence_start)
            && words[1..self.words.len()]
                .iter()
                .all(|word| word.follows_directly)
            && self
                .words
                .iter()
                .zip(words)
                .all(|(wanted, word)| *wanted == word.text)
    }
}

#[derive(Debug)]
struct Hit<'a> {
    line: usize,
    pattern: &'a Pattern,
}

#[derive(Debug)]
struct Page<'a> {
    path: String,
    words: usize,
    hits: Vec<Hit<'a>>,
}

impl Page<'_> {
    fn is_dense(&self) -> bool {
        per_1000(self.hits.len(), self.words) > HITS_MAX_PER_1000
    }

    fn with_hits(&self) -> String {
        let mut text = self.to_string();
        for hit in &self.hits {
            let Pattern {
                text: found,
                advice,
                ..
            } = hit.pattern;
            text += &format!("\n  {}:{}: `{found}`: {advice}", self.path, hit.line);
        }
        text
    }
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, density(self.hits.len(), self.words))
    }
}

fn density(hits: usize, words: usize) -> String {
    format!(
        "{hits} hits / {words} words = {:.1} per 1,000",
        per_1000(hits, words)
    )
}

fn per_1000(hits: usize, words: usize) -> f64 {
    1000.0 * hits as f64 / words.max(1) as f64
}

/// The paths below the checkout that match a pattern with at most one `*`, sorted.
fn expand(pattern: &str) -> Result<Vec<String>, Failed> {
    let Some((before, after)) = pattern.split_once('*') else {
        return Ok(vec![pattern.to_owned()]);
    };
    let failed = |error| Failed::new(format!("cannot list `{before}`: {error}"));
    let mut paths = Vec::new();
    for entry in fs::read_dir(root().join(before)).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        // The star is followed by the rest of a file's name, or by a file in the folder.
        let path = if after.starts_with('/') {
            format!("{before}{name}{after}")
        } else if name.ends_with(after) {
            format!("{before}{name}")
        } else {
            continue;
        };
        if root().join(PathBuf::from(&path)).is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[derive(Debug)]
struct Word {
    /// The word in lower case.
    text: String,
    /// The line number, from 1.
    line: usize,
    /// Whether the word starts a paragraph, heading, list item or table cell, or follows a full stop.
    starts_sentence: bool,
    /// Whether only white space and emphasis separate this word from the previous one.
    follows_directly: bool,
}

/// The words of a Markdown document without code, comments, tags and link targets.
fn words(markdown: &str) -> Vec<Word> {
    let mut reader = Reader::default();
    let mut fence: Option<&str> = None;
    for (number, line) in (1..).zip(markdown.lines()) {
        let content = line.trim_start();
        let marker = ["```", "~~~"]
            .into_iter()
            .find(|marker| content.starts_with(marker));
        match (fence, marker) {
            (None, Some(_)) => {
                fence = marker;
                reader.start_block();
            }
            (Some(_), _) => {
                if fence == marker {
                    fence = None;
                }
            }
            (None, None) => reader.read_line(number, content),
        }
    }
    reader.words
}

#[derive(Default)]
struct Reader {
    words: Vec<Word>,
    starts_sentence: bool,
    interrupted: bool,
    in_comment: bool,
    /// The backquotes that close the inline code.
    code: Option<String>,
}

impl Reader {
    fn start_block(&mut self) {
        self.starts_sentence = true;
        self.interrupted = true;
        self.code = None;
    }

    fn read_line(&mut self, number: usize, line: &str) {
        if line.is_empty() || begins_block(line) {
            self.start_block();
        }
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            rest = if self.in_comment {
                self.in_comment = !rest.contains("-->");
                after(rest, "-->")
            } else if let Some(quotes) = self.code.take() {
                if !rest.contains(&quotes) {
                    self.code = Some(quotes);
                    return;
                }
                after(rest, &quotes)
            } else if first == '`' {
                let other = rest.trim_start_matches('`');
                self.code = Some("`".repeat(rest.len() - other.len()));
                self.starts_sentence = false;
                self.interrupted = true;
                other
            } else if rest.starts_with("<!--") {
                self.in_comment = true;
                rest
            } else if rest.starts_with("](") {
                after(rest, ")")
            } else if first == '<' && rest.contains('>') {
                after(rest, ">")
            } else if first == '\\' {
                let mut characters = rest.chars();
                characters.next();
                characters.next();
                characters.as_str()
            } else if first.is_alphanumeric() {
                self.read_word(number, rest)
            } else {
                let other = &rest[first.len_utf8()..];
                self.read_mark(first, other);
                other
            };
        }
    }

    fn read_word<'a>(&mut self, line: usize, rest: &'a str) -> &'a str {
        let inner = |character: char| {
            character.is_alphanumeric() || matches!(character, '\'' | '’' | '-' | '_')
        };
        let end = rest.find(|character| !inner(character));
        let (word, other) = rest.split_at(end.unwrap_or(rest.len()));
        let text = word.trim_end_matches(|character: char| !character.is_alphanumeric());
        self.words.push(Word {
            text: text.replace('’', "'").to_lowercase(),
            line,
            starts_sentence: self.starts_sentence,
            follows_directly: !self.interrupted,
        });
        self.starts_sentence = false;
        self.interrupted = false;
        other
    }

    fn read_mark(&mut self, mark: char, rest: &str) {
        match mark {
            '*' | '_' | '[' => {}
            '|' => {
                self.starts_sentence = true;
                self.interrupted = true;
            }
            '.' | '?' | '!' => {
                let ends = rest
                    .trim_start_matches(['*', '_', ')', '"'])
                    .chars()
                    .next()
                    .is_none_or(char::is_whitespace);
                self.starts_sentence |= ends;
                self.interrupted = true;
            }
            _ => self.interrupted |= !mark.is_whitespace(),
        }
    }
}

/// Whether this is a heading, list item, quotation or table row, which neither starts nor continues a paragraph.
fn begins_block(line: &str) -> bool {
    let item = line.trim_start_matches(|character: char| character.is_ascii_digit());
    line.starts_with(['#', '>', '|'])
        || ["- ", "* ", "+ "].iter().any(|mark| line.starts_with(mark))
        || (item.len() < line.len() && item.starts_with(". "))
}

/// The text after the first `mark`, or nothing.
fn after<'a>(text: &'a str, mark: &str) -> &'a str {
    text.split_once(mark).map_or("", |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the hits.
    fn lines(list: &str, markdown: &str) -> Vec<usize> {
        let list = List::parse(list).expect("the list is well-formed");
        let page = list.measure("page.md", markdown);
        page.hits.iter().map(|hit| hit.line).collect()
    }

    #[test]
    fn pattern_for_sentence_start_matches_only_there() {
        let list = "^who => say who acts";
        let markdown = "\
# Who asks

Who asks
a person who knows. Who asks?

- who asks
- **Who** asks
1. who asks

| who | a person who |
| --- | --- |
| `x` who | x, who |
";
        assert_eq!(lines(list, markdown), [1, 3, 4, 6, 7, 8, 10]);
    }

    #[test]
    fn phrase_matches_whole_words_across_lines() {
        let list = "one that => the noun\nthe one that => the noun";
        let markdown =
            "Not everyone that, one thatch, or one, that.\nThe *one*\nthat waits. One `x` that.";
        assert_eq!(lines(list, markdown), [2]);
    }

    #[test]
    fn code_comments_and_link_targets_are_skipped() {
        let list = "anew => again";
        let markdown = "\
`anew` and ``a ` anew`` and `anew
anew`, [text](anew.md) <!-- anew
anew --> <a id=\"anew\">

```sh
anew
```

   ~~~
   anew
   ```
   ~~~

Here [anew](x.md).
";
        assert_eq!(lines(list, markdown), [14]);
    }

    #[test]
    fn words_and_hits_are_counted_per_1000() {
        let list = List::parse("anew\tagain").expect("the list is well-formed");
        let page = list.measure("page.md", "Begin anew, 12 times.");
        assert_eq!((page.words, page.hits.len()), (3, 1));
        assert_eq!(per_1000(3, 2000), 1.5);
        let page = |hits| list.measure("page.md", &("anew ".repeat(hits) + &"word ".repeat(2000)));
        assert!(!page(3).is_dense());
        assert!(page(4).is_dense());
    }

    #[test]
    fn page_over_the_limit_fails_and_exempt_page_within_it_too() {
        let list = List::parse("anew\tagain\nexempt: exempt.md").expect("the list is well-formed");
        let page = |path, hits: usize, words| {
            list.measure(path, &("anew ".repeat(hits) + &"word ".repeat(words)))
        };
        let failures = |pages: &[Page<'_>]| list.judge(pages).0.len();
        let good = || page("good.md", 0, 2000);
        assert_eq!(failures(&[good(), page("exempt.md", 4, 2000)]), 0);
        assert_eq!(failures(&[good(), page("exempt.md", 3, 2000)]), 1);
        assert_eq!(failures(&[good(), page("bad.md", 2, PAGE_WORDS_MIN)]), 1);
        assert_eq!(failures(&[good(), page("short.md", 2, 10)]), 0);
        assert_eq!(failures(&[page("short.md", 2, 10)]), 1, "all together");
    }

    #[test]
    fn line_without_advice_is_refused() {
        let failed = List::parse("# words\nanew").expect_err("the second line has no advice");
        assert!(failed.error().contains("prose.txt:2"), "{}", failed.error());
    }

    #[test]
    fn list_in_the_repository_is_well_formed() {
        let list = List::parse(LIST).expect("the list is well-formed");
        assert!(list.patterns.len() > 50);
    }
}
