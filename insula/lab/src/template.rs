//! What stands for what in commands: `{dir}`, `{lab}`, `{host}`, `{address}`, `{address:NAME}`.

use std::path::Path;

use crate::{
    error::{LabError, Result},
    file::LabFile,
};

/// Where a text is filled in.
pub(crate) struct Place<'a> {
    pub(crate) file: &'a LabFile,
    pub(crate) lab: &'a Path,
    pub(crate) dir: &'a Path,
    pub(crate) host: &'a str,
}

impl Place<'_> {
    /// Replaces every `{..}`; an unknown one is an error, so that a typing mistake is no file name.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let invalid = |what: &str| LabError::Invalid(format!("{what} in {text:?}"));
            let (name, tail) = after.split_once('}').ok_or_else(|| invalid("an open brace"))?;
            out.push_str(before);
            match name {
                "dir" => out.push_str(&self.dir.to_string_lossy()),
                "lab" => out.push_str(&self.lab.to_string_lossy()),
                "host" => out.push_str(self.host),
                "address" => out.push_str(&self.address(self.host)?),
                _ => match name.strip_prefix("address:") {
                    Some(host) => out.push_str(&self.address(host)?),
                    None => return Err(invalid(&format!("unknown {{{name}}}"))),
                },
            }
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn address(&self, host: &str) -> Result<String> {
        match self.file.hosts.get(host) {
            Some(host) => Ok(host.address().to_string()),
            None => Err(LabError::Invalid(format!("there is no host {host:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_filled_in() {
        let file = LabFile::parse(
            "{networks: {n: 10.0.0.0/8}, hosts: {a: {on: {n: {address: 10.0.0.1}}}, b: {on: {n: {address: 10.0.0.2}}}}}",
        )
        .unwrap();
        let place = Place { file: &file, lab: Path::new("/l"), dir: Path::new("/l/a"), host: "a" };
        let text = place.fill("{dir}/x http://{address}:1 {address:b} {host} {lab}").unwrap();
        assert_eq!(text, "/l/a/x http://10.0.0.1:1 10.0.0.2 a /l");
        assert!(place.fill("{adress}").unwrap_err().to_string().contains("unknown {adress}"));
        assert!(place.fill("{dir").is_err());
    }
}
