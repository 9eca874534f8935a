//! The spool's tests: torn writes, its bound, restarts, a second writer.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn open(directory: &Path, bytes: u64) -> Spool {
    Spool::open(Place { directory: directory.to_owned(), bytes }).unwrap()
}

fn place() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("spool");
    (parent, directory)
}

/// Everything in it; `None` for what is torn.
fn drain(spool: &mut Spool) -> Vec<Option<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some(taken) = spool.take() {
        all.push(match taken {
            Taken::Whole(bytes) => Some(bytes),
            Taken::Torn => None,
        });
        spool.done();
    }
    all
}

fn files(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name != "lock");
    names.sort();
    names
}

#[test]
fn whether_it_can_be_is_seen_without_making_it() {
    let (parent, directory) = place();
    can_be(&directory).unwrap();
    assert!(!directory.exists());
    can_be(parent.path()).unwrap();
    assert!(can_be(&directory.join("deeper")).is_err());
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(can_be(&file).unwrap_err().to_string().contains("not a directory"));
}

#[test]
fn it_survives_a_restart_in_order() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 1 << 20);
    for entry in [&b"two"[..], b"three", b""] {
        spool.push(entry).unwrap();
    }
    spool.push_oldest(b"one").unwrap();
    drop(spool);
    let mut spool = open(&directory, 1 << 20);
    assert_eq!((spool.len(), spool.bytes()), (4, 4 * BLOCK));
    spool.push(b"youngest").unwrap();
    let all: Vec<Vec<u8>> = drain(&mut spool).into_iter().flatten().collect();
    assert_eq!(all, [&b"one"[..], b"two", b"three", b"", b"youngest"]);
    assert_eq!((spool.bytes(), spool.lost()), (0, Lost::default()));
    assert!(files(&directory).is_empty());
}

#[test]
fn a_write_torn_at_any_byte_is_skipped_and_the_others_are_whole() {
    let (_parent, directory) = place();
    let entry: Vec<u8> = (0..100).collect();
    for length in 0..HEAD + entry.len() {
        let mut spool = open(&directory, 1 << 20);
        for _ in 0..3 {
            spool.push(&entry).unwrap();
        }
        let torn = spool.batch(FIRST + 1);
        drop(spool);
        let file = OpenOptions::new().write(true).open(&torn).unwrap();
        file.set_len(length as u64).unwrap();
        let mut spool = open(&directory, 1 << 20);
        let expected = [Some(entry.clone()), None, Some(entry.clone())];
        assert_eq!(drain(&mut spool), expected, "{length}");
        assert_eq!(spool.lost(), Lost { torn: 1, ..Lost::default() });
        assert_eq!((spool.bytes(), files(&directory).len()), (0, 0));
    }
}

#[test]
fn no_byte_can_be_another() {
    let entry: Vec<u8> = (0..100).collect();
    let mut bytes = head(7, &entry);
    bytes.extend_from_slice(&entry);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            assert_eq!(whole(7, wrong), None, "{at}");
        }
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!((whole(7, longer), whole(8, bytes.clone())), (None, None));
    assert_eq!(whole(7, bytes), Some(entry));
}

#[test]
fn blocks_that_were_never_written_are_torn() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 1 << 20);
    spool.push(&[1; 5_000]).unwrap();
    fs::write(spool.batch(FIRST), vec![0; 5_000 + HEAD]).unwrap();
    assert_eq!(drain(&mut spool), [None]);
    fs::write(spool.batch(FIRST), b"").unwrap();
    assert!(spool.push(b"its name is taken").is_err());
    assert_eq!(spool.lost(), Lost { torn: 1, dropped: 1, unknown: 0 });
}

#[test]
fn what_was_being_sent_is_not_sent_again() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 1 << 20);
    spool.push(b"perhaps").unwrap();
    spool.push(b"surely not").unwrap();
    assert_eq!(spool.take(), Some(Taken::Whole(b"perhaps".to_vec())));
    drop(spool);
    let mut spool = open(&directory, 1 << 20);
    assert_eq!(spool.lost(), Lost { unknown: 1, ..Lost::default() });
    assert_eq!(drain(&mut spool), [Some(b"surely not".to_vec())]);
}

#[test]
fn what_is_put_back_is_the_oldest_again() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 1 << 20);
    spool.push(b"1").unwrap();
    assert_eq!(spool.take(), Some(Taken::Whole(b"1".to_vec())));
    spool.push(b"2").unwrap();
    spool.put_back();
    spool.put_back();
    assert_eq!(drain(&mut spool), [Some(b"1".to_vec()), Some(b"2".to_vec())]);
    spool.push(b"of another version").unwrap();
    let _taken = spool.take();
    spool.reject();
    assert_eq!((spool.lost().torn, spool.bytes(), spool.len()), (1, 0, 0));
}

#[test]
fn one_writes_there_at_a_time() {
    let (_parent, directory) = place();
    let first = open(&directory, 1 << 20);
    let error = Spool::open(Place { directory: directory.clone(), bytes: 1 << 20 }).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("another greenscope") && text.contains(directory.to_str().unwrap()), "{text}");
    assert!(!text.contains('\n'));
    drop(first);
    let _again = open(&directory, 1 << 20);
}

#[test]
fn a_directory_that_cannot_be_is_one_line() {
    let (_parent, directory) = place();
    let below = directory.join("below");
    let text = Spool::open(Place { directory: below, bytes: 1 << 20 }).unwrap_err().to_string();
    assert!(text.starts_with("--spool ") && !text.contains('\n'), "{text}");
    fs::write(&directory, b"a file").unwrap();
    assert!(Spool::open(Place { directory, bytes: 1 << 20 }).is_err());
}

#[test]
fn what_cannot_be_written_is_counted() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 4 * BLOCK);
    spool.push(&vec![0; 4 * 4_096]).unwrap();
    assert_eq!((spool.lost().dropped, spool.len()), (1, 0));
    fs::remove_dir_all(&directory).unwrap();
    assert!(spool.push(b"nowhere").is_err() && spool.push_oldest(b"nowhere").is_err());
    assert_eq!((spool.lost().dropped, spool.bytes(), spool.len()), (3, 0, 0));
}

#[test]
fn other_files_are_left_alone_and_links_not_followed() {
    let (parent, directory) = place();
    drop(open(&directory, 1 << 20));
    let secret = parent.path().join("secret");
    fs::write(&secret, b"secret").unwrap();
    for name in ["notes.txt", "1.batch", "+0000000000000000001.batch"] {
        fs::write(directory.join(name), b"mine").unwrap();
    }
    std::os::unix::fs::symlink(&secret, directory.join(format!("{:020}.batch", 1))).unwrap();
    let mut spool = open(&directory, 1 << 20);
    assert_eq!((drain(&mut spool), spool.lost().torn), (vec![], 1));
    assert_eq!(files(&directory), ["+0000000000000000001.batch", "1.batch", "notes.txt"]);
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn a_smaller_bound_drops_the_oldest_at_start() {
    let (_parent, directory) = place();
    let mut spool = open(&directory, 1 << 20);
    for number in 0..10 {
        spool.push(&[number]).unwrap();
    }
    drop(spool);
    let mut spool = open(&directory, 3 * BLOCK);
    assert_eq!(spool.lost().dropped, 7);
    assert_eq!(drain(&mut spool), [Some(vec![7]), Some(vec![8]), Some(vec![9])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_keeps_its_bound_and_the_order(
        steps in prop::collection::vec((0_usize..12_000, 0_u8..6), 0..60),
    ) {
        let (_parent, directory) = place();
        let room = 8 * BLOCK;
        let mut spool = open(&directory, room);
        let (mut last, mut out, mut pushed, mut dropped) = (None, 0, 0_u32, 0);
        for (size, what) in steps {
            match what {
                0 | 1 => {
                    if let Some(Taken::Whole(bytes)) = spool.take() {
                        if what == 0 {
                            let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                            prop_assert!(last.is_none_or(|last| last < number));
                            last = Some(number);
                            out += 1;
                            spool.done();
                        } else {
                            spool.put_back();
                        }
                    }
                }
                2 => {
                    dropped += spool.lost().dropped;
                    drop(spool);
                    spool = open(&directory, room);
                }
                _ => {
                    let mut entry = pushed.to_le_bytes().to_vec();
                    entry.resize(4 + size, 7);
                    spool.push(&entry).unwrap();
                    pushed += 1;
                }
            }
            let on_disk: u64 = files(&directory).iter()
                .map(|name| blocks(fs::metadata(directory.join(name)).unwrap().len())).sum();
            prop_assert_eq!(on_disk, spool.bytes());
            prop_assert!(on_disk <= room);
        }
        dropped += spool.lost().dropped;
        prop_assert_eq!(out + dropped + spool.len() as u64, u64::from(pushed));
    }
}
