//! `insula keys`: the keys that sign service account tokens, and those that wrap what seals what
//! is stored, one after the other.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use insula_apiserver::{
    encryption::{EncryptionError, EncryptionFile},
    pki::write_private,
    tokens::{KeyError, KeyFile},
};
use insula_client::Client;
use serde_json::Value;

use crate::{cli, data_dir::DataDir, pki::ENCRYPTION, signals::run_until_signalled};

/// Where `insula keys status` and `reseal` ask.
const ENCRYPTION_PATH: &str = "/insula/encryption";

/// How long it may take to look at all that is stored.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A file of keys of which the first is used, and all are good.
trait Keys: Clone + PartialEq + Sized {
    type Error: std::error::Error + Send + Sync + 'static;
    /// What the first key does, and what all do.
    const DO: [&str; 2];

    fn read(text: &str) -> Result<Self, Self::Error>;
    fn written(&self) -> Result<String, Self::Error>;
    fn ids(&self) -> Vec<String>;
    fn make(&mut self) -> Result<String, Self::Error>;
    fn put_first(&mut self, id: &str) -> Result<(), Self::Error>;
    fn take_out(&mut self, id: &str) -> Result<(), Self::Error>;
}

impl Keys for KeyFile {
    type Error = KeyError;
    const DO: [&str; 2] = ["signs and verifies", "verifies"];

    fn read(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }

    fn written(&self) -> Result<String, KeyError> {
        Ok(self.text())
    }

    fn ids(&self) -> Vec<String> {
        self.ids().map(str::to_owned).collect()
    }

    fn make(&mut self) -> Result<String, KeyError> {
        self.add()
    }

    fn put_first(&mut self, id: &str) -> Result<(), KeyError> {
        self.sign_with(id)
    }

    fn take_out(&mut self, id: &str) -> Result<(), KeyError> {
        self.remove(id)
    }
}

impl Keys for EncryptionFile {
    type Error = EncryptionError;
    const DO: [&str; 2] = ["wraps and unwraps", "unwraps"];

    fn read(text: &str) -> Result<Self, EncryptionError> {
        Self::parse(text)
    }

    fn written(&self) -> Result<String, EncryptionError> {
        self.text()
    }

    fn ids(&self) -> Vec<String> {
        self.keys().map(|(id, _)| id.to_owned()).collect()
    }

    fn make(&mut self) -> Result<String, EncryptionError> {
        self.add()
    }

    fn put_first(&mut self, id: &str) -> Result<(), EncryptionError> {
        self.wrap_with(id)
    }

    fn take_out(&mut self, id: &str) -> Result<(), EncryptionError> {
        self.remove(id)
    }
}

/// `insula keys`.
pub(crate) fn run(command: &cli::KeysCommand) -> Result<()> {
    let place = match command {
        cli::KeysCommand::Status(cloud) => return ask(cloud, None),
        cli::KeysCommand::Reseal(options) => return ask(&options.cloud, Some(options.renew)),
        cli::KeysCommand::List(place)
        | cli::KeysCommand::Add(place)
        | cli::KeysCommand::Rotate(place) => place,
        cli::KeysCommand::Use(which) | cli::KeysCommand::Remove(which) => &which.place,
    };
    match place.encryption {
        true => change::<EncryptionFile>(command, place),
        false => change::<KeyFile>(command, place),
    }
}

fn change<K: Keys>(command: &cli::KeysCommand, place: &cli::KeysPlace) -> Result<()> {
    let path = path(place);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read the keys {}", path.display()))?;
    let mut file = K::read(&text)?;
    let before = file.clone();
    match command {
        cli::KeysCommand::Add(_) => drop(file.make()?),
        cli::KeysCommand::Use(which) => file.put_first(&which.id)?,
        cli::KeysCommand::Remove(which) => file.take_out(&which.id)?,
        cli::KeysCommand::Rotate(_) => {
            let id = file.make()?;
            file.put_first(&id)?;
        }
        _ => (),
    }
    if file != before {
        write_private(&path, &file.written()?)?;
    }
    let [first, all] = K::DO;
    for (index, id) in file.ids().iter().enumerate() {
        print(&format!("{id}\t{}", if index == 0 { first } else { all }));
    }
    Ok(())
}

fn path(place: &cli::KeysPlace) -> PathBuf {
    let name = if place.encryption { ENCRYPTION } else { "sa.key" };
    match (&place.file, &place.data_dir) {
        (Some(file), _) => file.clone(),
        (None, Some(dir)) => dir.join("pki").join(name),
        (None, None) => PathBuf::from("pki").join(name),
    }
}

/// Has a running cloud tell how what it stores is sealed; first brings it in order, if told to.
fn ask(place: &cli::CloudPlace, reseal: Option<bool>) -> Result<()> {
    let kubeconfig = match (&place.kubeconfig, &place.data_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(dir)) => DataDir::open(dir)?.path("admin.kubeconfig"),
        (None, None) => bail!("say which cloud: --kubeconfig F or --data-dir DIR"),
    };
    run_until_signalled(async |shutdown| {
        let work = async {
            let client = Client::from_kubeconfig(&kubeconfig, "insula-keys").await?;
            let client = client.with_timeout(PATIENCE);
            let answer: Value = match reseal {
                None => client.document(ENCRYPTION_PATH).await?,
                Some(renew) => client.order(&format!("{ENCRYPTION_PATH}?renew={renew}")).await?,
            };
            show(&answer);
            Ok(())
        };
        tokio::select! {
            done = work => done,
            () = shutdown.cancelled() => bail!("interrupted"),
        }
    })
}

fn show(answer: &Value) {
    for key in answer["keys"].as_array().into_iter().flatten() {
        let does = if key["wraps"] == true { "wraps and unwraps" } else { "unwraps" };
        let id = key["id"].as_str().unwrap_or_default();
        print(&format!("{id}\t{does}\t{} data keys", key["dataKeys"]));
    }
    let stored = &answer["stored"];
    print(&format!(
        "values: {} sealed, {} with an older data key, {} not sealed yet, {} lost",
        stored["sealed"], stored["older"], stored["unsealed"], stored["lost"]
    ));
    if let Some(reason) = stored["reason"].as_str() {
        print(&format!("lost: {reason}"));
    }
    for (partition, why) in answer["partitionsNotSeen"].as_object().into_iter().flatten() {
        print(&format!("partition {partition} was not seen: {}", why.as_str().unwrap_or_default()));
    }
}

#[allow(clippy::print_stdout, reason = "the output that was asked for")]
fn print(line: &str) {
    println!("{line}");
}
