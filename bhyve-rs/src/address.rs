//! Ethernet addresses of the machines that run: no two of them have the same.
//!
//! Each address has a file in the run directory, which its machine locks and writes its name into. The lock goes with the
//! process, however that ends; the file stays, so that nobody removes one that the next machine has locked already.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use host::control;

/// Takes these addresses for a machine, as long as what is returned lives.
///
/// # Errors
/// A machine that runs has one of them; the message names both.
pub fn claim(dir: &Path, machine: &str, addresses: &[String]) -> Result<Vec<File>> {
    let take = |mac: &String| -> Result<File> {
        let path = dir.join(format!("{}.mac", mac.replace(':', "-")));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(machine.as_bytes())?;
                Ok(file)
            }
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                file.rewind()?;
                file.read_to_string(&mut owner)?;
                bail!(
                    "{owner}, which is running, has a network card with the address {mac}, and so has {machine}: \
                     give one of them another (nic.mac)"
                )
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| path.display().to_string()),
        }
    };
    for (n, mac) in addresses.iter().enumerate() {
        if addresses[..n].contains(mac) {
            bail!("two network cards of {machine} have the address {mac}: give one of them another (nic.mac)");
        }
    }
    if !addresses.is_empty() {
        control::make_run_dir(dir)?;
    }
    addresses.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cards_of_one_machine_are_no_two_machines() {
        let twice = ["00:a0:98:00:00:01".to_owned(), "00:a0:98:00:00:01".to_owned()];
        let error = claim(Path::new("/nonexistent"), "web", &twice).unwrap_err().to_string();
        assert!(error.starts_with("two network cards of web"), "{error}");
    }

    #[test]
    fn a_second_machine_with_an_address_is_refused_with_both_names_until_the_first_has_ended() {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-address-{}", std::process::id()));
        let all = |last: &str| vec!["00:a0:98:00:00:01".to_owned(), format!("00:a0:98:00:00:{last}")];
        let first = claim(&dir, "web", &all("02")).unwrap();
        let refused = format!("{:#}", claim(&dir, "mail", &all("03")).unwrap_err());
        assert!(
            refused.contains("web") && refused.contains("mail") && refused.contains("00:a0:98:00:00:01"),
            "{refused}"
        );
        drop(first);
        let second = claim(&dir, "mail", &all("03")).unwrap();
        assert!(format!("{:#}", claim(&dir, "web", &all("02")).unwrap_err()).starts_with("mail, "));
        drop(second);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
