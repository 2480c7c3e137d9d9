//! `insula keys`: the keys that sign service account tokens, one after the other.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use insula_apiserver::{pki::write_private, tokens::KeyFile};

use crate::cli;

/// What is done to a file of keys.
type Change<'a> = Box<dyn FnOnce(&mut KeyFile) -> Result<()> + 'a>;

/// `insula keys`.
pub(crate) fn run(command: &cli::KeysCommand) -> Result<()> {
    let (place, change): (_, Change<'_>) = match command {
        cli::KeysCommand::List(place) => (place, Box::new(|_| Ok(()))),
        cli::KeysCommand::Add(place) => (place, Box::new(|file| Ok(file.add().map(drop)?))),
        cli::KeysCommand::Use(which) => {
            (&which.place, Box::new(|file| Ok(file.sign_with(&which.id)?)))
        }
        cli::KeysCommand::Remove(which) => {
            (&which.place, Box::new(|file| Ok(file.remove(&which.id)?)))
        }
        cli::KeysCommand::Rotate(place) => (
            place,
            Box::new(|file| {
                let id = file.add()?;
                Ok(file.sign_with(&id)?)
            }),
        ),
    };
    let path = path(place);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read the keys {}", path.display()))?;
    let mut file = KeyFile::parse(&text)?;
    let before = file.clone();
    change(&mut file)?;
    if file != before {
        write_private(&path, &file.text())?;
    }
    print(&file);
    Ok(())
}

fn path(place: &cli::KeysPlace) -> PathBuf {
    match (&place.file, &place.data_dir) {
        (Some(file), _) => file.clone(),
        (None, Some(dir)) => dir.join("pki").join("sa.key"),
        (None, None) => PathBuf::from("pki/sa.key"),
    }
}

#[allow(clippy::print_stdout, reason = "the output that was asked for")]
fn print(file: &KeyFile) {
    for (index, id) in file.ids().enumerate() {
        println!("{id}\t{}", if index == 0 { "signs and verifies" } else { "verifies" });
    }
}
