//! The README and the pages of `docs/`, as their readers find them.

use std::path::PathBuf;

use super::root;

/// A page, by its address below the repository's root.
#[derive(Clone, Debug)]
pub struct Page {
    pub path: String,
    pub text: String,
}

/// The page at `path`.
pub fn page(path: &str) -> Page {
    let text = std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    Page { path: path.to_owned(), text }
}

/// The README, then every page of the book.
pub fn pages() -> Vec<Page> {
    let mut found = vec![page("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(page(path.to_str().unwrap()));
            }
        }
    }
    found[1..].sort_by(|one, other| one.path.cmp(&other.path));
    found
}

impl Page {
    /// The text outside of fenced blocks, line by line.
    pub fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_fenced = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_fenced ^= is_fence;
            !is_fenced && !is_fence
        })
    }

    /// What stands in blocks that begin with three backticks and `language`, each with the indentation of its fence
    /// taken away.
    pub fn blocks(&self, language: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut open: Option<(bool, usize, String)> = None;
        for line in self.text.lines() {
            let bare = line.trim_start();
            match (&mut open, bare.strip_prefix("```")) {
                (None, Some(name)) => {
                    open = Some((name == language, line.len() - bare.len(), String::new()));
                }
                (Some(_), Some(_)) => {
                    found.extend(open.take().filter(|(is_meant, ..)| *is_meant).map(|of| of.2));
                }
                (Some((_, indent, text)), None) => {
                    text.push_str(line.get(*indent..).unwrap_or_default());
                    text.push('\n');
                }
                (None, None) => {}
            }
        }
        found
    }

    /// The commands of ours, in the text and in its blocks: `outrigger dead list\|show ID` is two.
    pub fn commands(&self) -> Vec<String> {
        let shown = self.blocks("").into_iter().chain(self.blocks("sh"));
        let typed = shown
            .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
            .map(|line| line.trim_start_matches("$ ").to_owned())
            .filter(|line| line.starts_with("outrigger ") && !line.contains(" && "))
            .map(|line| line.split("  #").next().unwrap().trim_end().to_owned());
        self.prose().flat_map(named).chain(typed).collect()
    }

    /// The addresses of the links and pictures, as they are written.
    pub fn links(&self) -> Vec<String> {
        let prose: String = self.prose().flat_map(|line| [line, "\n"]).collect();
        prose
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'))
            .map(|(address, _)| address.to_owned())
            .collect()
    }

    /// The anchors of the headings, as GitHub and mdBook make them.
    pub fn anchors(&self) -> Vec<String> {
        self.prose()
            .filter_map(|line| {
                line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
            })
            .map(|title| {
                title
                    .to_lowercase()
                    .chars()
                    .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                    .map(|c| if c == ' ' { '-' } else { c })
                    .collect()
            })
            .collect()
    }
}

/// The commands of ours that a line names between backquotes.
fn named(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for span in line.split('`').skip(1).step_by(2).filter(|span| span.starts_with("outrigger ")) {
        let words: Vec<_> =
            span.split_whitespace().map(|word| word.split("\\|").collect::<Vec<_>>()).collect();
        let mut all = vec![String::new()];
        for choices in words {
            all = all
                .iter()
                .flat_map(|begun| choices.iter().map(move |word| format!("{begun} {word}")))
                .collect();
        }
        found.extend(all.into_iter().map(|of| of.trim().to_owned()));
    }
    found
}
