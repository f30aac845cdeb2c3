"""Public data sets whose files say their labels in ways of their own: read right, or the way out is named."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from layout_files import files as waves
from layout_files import refused

from earshot.competition.load import load


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def split(comp, name: str) -> dict[str, str]:
    part = comp.clips[comp.clips["split"] == name]
    return {Path(path).name: label for path, label in zip(part["path"], part["label"], strict=True)}


def pasted(line: str) -> dict[str, str]:
    """The first flag of an error, as it would be typed."""
    _, _, rest = line.partition("--label-pattern ")
    return {"label_pattern": shlex.split(rest.split(" (")[0])[0]}


def test_a_table_of_patients_labels_all_their_clips(tmp_path: Path) -> None:
    waves(tmp_path, *(f"audio/{p}_{k}b1_Al_sc.wav" for p in range(101, 107) for k in (1, 2)))
    write(
        tmp_path / "patient_diagnosis.csv", *(f"{p},{'COPD' if p % 2 else 'URTI'}" for p in range(101, 107))
    )
    comp = load(tmp_path)
    assert split(comp, "train")["101_1b1_Al_sc.wav"] == "COPD"
    assert split(comp, "train")["106_2b1_Al_sc.wav"] == "URTI"
    assert comp.clips["group"].nunique() == 6 and len(comp.clips) == 12


def test_a_class_table_does_not_make_groups_of_the_classes(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{c}{k}.wav" for c in ("cat", "dog", "hen", "cow") for k in range(3)))
    write(tmp_path / "classes.csv", "name,kind", "cat,pet", "dog,pet", "hen,farm", "cow,farm")
    assert load(tmp_path).classes == ["cat", "cow", "dog", "hen"]


def test_of_two_test_tables_the_labelled_one_is_the_holdout(tmp_path: Path) -> None:
    train = [f"audio/{s}-oslo-{k}-{k}-a.wav\t{s}" for s in ("bus", "park") for k in range(4)]
    test = [f"audio/{s}-rome-{k}-{k}-a.wav\t{s}" for s in ("bus", "park") for k in range(2)]
    waves(tmp_path, *(line.split("\t")[0] for line in train + test))
    write(tmp_path / "meta.csv", "filename\tscene_label\tidentifier", *(f"{x}\tp" for x in train + test))
    setup = tmp_path / "evaluation_setup"
    write(setup / "fold1_train.csv", "filename\tscene_label", *train)
    write(setup / "fold1_evaluate.csv", "filename\tscene_label", *test)
    write(setup / "fold1_test.csv", "filename", *(line.split("\t")[0] for line in test))
    comp = load(tmp_path)
    assert len(split(comp, "train")) == 8 and len(split(comp, "test")) == 4
    train_groups = comp.clips["group"][comp.clips["split"] == "train"]
    assert set(train_groups) == {f"oslo-{k}" for k in range(4)}


def test_a_bare_list_of_test_clips_is_the_holdout(tmp_path: Path) -> None:
    names = [f"{k:06d}_{k * 960}" for k in range(1, 13)]
    waves(tmp_path, *(f"audio/{name}.wav" for name in names))
    rows = [f"{name},{'flute' if k % 2 else 'cello'}" for k, name in enumerate(names)]
    write(tmp_path / "labels.csv", "sample_key,instrument", *rows)
    write(tmp_path / "partitions" / "split01_train.csv", *names[:8])
    write(tmp_path / "partitions" / "split01_test.csv", *names[8:])
    comp = load(tmp_path)
    assert set(split(comp, "test")) == {f"{name}.wav" for name in names[8:]}
    assert comp.classes == ["cello", "flute"] and len(split(comp, "train")) == 8


def test_official_lists_beside_class_folders(tmp_path: Path) -> None:
    waves(tmp_path, *(f"genres/{g}/{g}.{k:05d}.wav" for g in ("jazz", "rock") for k in range(4)))
    write(
        tmp_path / "train_filtered.txt", *(f"{g}/{g}.{k:05d}.wav" for g in ("jazz", "rock") for k in range(3))
    )
    write(tmp_path / "test_filtered.txt", "jazz/jazz.00003.wav", "rock/rock.00003.wav")
    assert set(split(load(tmp_path), "test")) == {"jazz.00003.wav", "rock.00003.wav"}


def test_json_tables(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        waves(tmp_path / part, *(f"{k}.wav" for k in range(count)))
        rows = [{"file_name": f"{k}.wav", "label": ("cat", "dog")[k % 2]} for k in range(count)]
        write(tmp_path / part / "metadata.jsonl", *map(json.dumps, rows))
    comp = load(tmp_path)
    assert comp.classes == ["cat", "dog"] and len(split(comp, "test")) == 2


def test_json_that_is_no_table_is_no_error(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{k}{c}.wav" for c in ("cat", "dog") for k in range(3)))
    write(tmp_path / "class-map.json", '{"cat": 0, "dog": 1}')
    write(tmp_path / "broken.json", '{"cat": ')
    assert load(tmp_path).classes == ["cat", "dog"]


def test_several_header_rows(tmp_path: Path) -> None:
    waves(tmp_path, *(f"fma_small/00{k // 5}/{k:06d}.wav" for k in range(1, 11)))
    rows = [f"{k},{k // 2},T{k},training,{('Folk', 'Rock')[k % 2]},S{k}" for k in range(1, 11)]
    heads = [",artist,artist,set,track,track", ",id,title,split,genre_top,title", "track_id,,,,,"]
    write(tmp_path / "fma_metadata" / "tracks.csv", *heads, *rows)
    comp = load(tmp_path)
    assert comp.classes == ["Folk", "Rock"] and len(split(comp, "train")) == 10


def test_protocols_between_blanks(tmp_path: Path) -> None:
    for part, letter in (("train", "T"), ("dev", "D"), ("eval", "E")):
        names = [f"LA_{letter}_{1000 + k}" for k in range(6)]
        waves(tmp_path / "LA" / "LA" / f"LA_{part}" / "flac", *(f"{name}.wav" for name in names))
        rows = [
            f"LA_{k % 3} {n} - {'A01' if k % 2 else '-'} {'spoof' if k % 2 else 'bonafide'}"
            for k, n in enumerate(names)
        ]
        write(tmp_path / "LA" / "LA" / "protocols" / f"cm.{part}.txt", *rows)
    comp = load(tmp_path)
    assert comp.classes == ["bonafide", "spoof"]
    assert len(split(comp, "train")) == 12 and len(split(comp, "test")) == 6


def test_of_a_table_without_header_the_column_that_repeats_folders_is_the_label(tmp_path: Path) -> None:
    rows = []
    for k, (emotion, part) in enumerate((e, p) for e in ("Angry", "Happy") for p in ("train", "test") * 3):
        waves(tmp_path, f"0011/{emotion}/{part}/0011_{k:06d}.wav")
        rows.append(f"0011_{k:06d}\tSentence {k % 2}\t{emotion}")
    write(tmp_path / "0011" / "0011.txt", *rows)
    comp = load(tmp_path)
    assert comp.classes == ["Angry", "Happy"] and len(split(comp, "test")) == 6


def test_a_table_of_the_clips_that_is_not_used_is_named_with_what_to_add(tmp_path: Path) -> None:
    names = [f"site{s}/{s}_{k}_a.wav" for s in "ab" for k in range(4)]
    waves(tmp_path, *names)
    rows = [f"{n},site{n[4]},{k},{k % 2},{(k + 1) % 2}" for k, n in enumerate(names)]
    write(tmp_path / "metadata.csv", "fname,site,number,OWL,JAY", *rows)
    comp = load(tmp_path, out=tmp_path / "out")
    said = [line for line in comp.notes if line.startswith("warning") and "--train-csv metadata.csv" in line]
    assert said and "--task multilabel" in said[0] or comp.multilabel or comp.classes == ["JAY", "OWL"]


def test_annotations_beside_folders_of_sites_are_named(tmp_path: Path) -> None:
    for s in "ab":
        for k in range(3):
            waves(tmp_path, f"raw/site{s}/{s}_{k}_x.wav")
            write(tmp_path / "strong" / f"{s}_{k}_x.txt", "0\t1\tOWL", "1\t2\tJAY")
    assert any("6 files are named like the clips" in line for line in load(tmp_path).notes)


def test_folder_levels_are_offered_and_the_flag_works(tmp_path: Path) -> None:
    waves(
        tmp_path,
        *(f"fan/id_0{m}/{c}/{k:08d}.wav" for m in (0, 2) for c in ("abnormal", "normal") for k in (0, 1)),
    )
    line = refused(tmp_path)
    assert load(tmp_path, **pasted(line)).classes == ["abnormal", "normal"]


def test_folders_of_people_are_offered_where_nothing_else_is_there(tmp_path: Path) -> None:
    waves(tmp_path, *(f"id1027{s}/v{s}{v}/{k:05d}.wav" for s in range(3) for v in range(2) for k in range(2)))
    assert "--label-pattern" in refused(tmp_path)


def test_a_known_layout_by_names_is_that_of_most_clips(tmp_path: Path) -> None:
    waves(
        tmp_path, *(f"Crema/100{k}_DFA_ANG_XX.wav" for k in range(2)), *(f"Other/x/{k}.wav" for k in range(6))
    )
    assert "no known layout" in refused(tmp_path)


def test_well_known_names(tmp_path: Path) -> None:
    waves(tmp_path / "emodb", *(f"wav/{s}a01{e}.wav" for s in ("03", "08", "16") for e in ("Wa", "Fb", "Na")))
    waves(
        tmp_path / "savee", *(f"{s}/{e}01.wav" for s in ("DC", "JE", "JK", "KL") for e in ("a", "sa", "su"))
    )
    waves(
        tmp_path / "tess",
        *(f"{s}_{e}/{s}_{w}_{e}.wav" for s in ("OAF", "YAF") for e in ("sad", "ps") for w in ("a", "b")),
    )
    assert load(tmp_path / "emodb").classes == ["anger", "happiness", "neutral"]
    assert load(tmp_path / "savee").classes == ["anger", "sadness", "surprise"]
    assert load(tmp_path / "tess").classes == ["sad", "surprised"]


def test_labels_by_the_last_word_of_their_column(tmp_path: Path) -> None:
    waves(tmp_path, *(f"audio/{k}.wav" for k in range(8)))
    rows = [
        f"{k}.wav\t{t}\t{t + 1}\t{e}" for k in range(8) for t, e in enumerate(("Dog", "Cat", "Dog")[k % 2 :])
    ]
    write(tmp_path / "strong.tsv", "filename\tonset\toffset\tevent_label", *rows)
    comp = load(tmp_path)
    assert comp.multilabel and comp.classes == ["Cat", "Dog"]


def test_tags_between_tabs(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{k % 3:02d}/{k}.wav" for k in range(9)))
    rows = [f"a{k // 2}\t{k % 3:02d}/{k}.wav\tmood" + "\tfilm" * (k % 2) for k in range(9)]
    write(tmp_path / "tags.tsv", "ARTIST_ID\tPATH\tTAGS", *rows)
    comp = load(tmp_path)
    assert comp.multilabel and comp.classes == ["film", "mood"]


def test_tables_of_one_name_in_folders_of_training_clips(tmp_path: Path) -> None:
    for part in "ab":
        waves(tmp_path / f"training-{part}", *(f"{part}{k:04d}.wav" for k in range(1, 5)))
        write(
            tmp_path / f"training-{part}" / "REFERENCE.csv",
            *(f"{part}{k:04d},{1 - k % 2 * 2}" for k in range(1, 5)),
        )
    assert len(split(load(tmp_path), "train")) == 8


def test_a_group_column_of_one_value_is_no_group(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{k}.wav" for k in range(6)))
    write(tmp_path / "train.csv", "file,group,label", *(f"{k}.wav,birds,{'ab'[k % 2]}" for k in range(6)))
    comp = load(tmp_path)
    assert set(comp.clips["group"]) == {""}
    assert "column group is not used: all rows have birds" in comp.notes


def test_folders_of_people_that_a_table_names_are_said(tmp_path: Path) -> None:
    waves(tmp_path, *(f"audio/P0{p}/rec_{k}.wav" for p in range(6) for k in range(2)))
    write(
        tmp_path / "patients.csv",
        "patient,diagnosis",
        *(f"P0{p},{'sick' if p % 2 else 'well'}" for p in range(6)),
    )
    said = next(line for line in load(tmp_path).notes if "the class folders are the patient" in line)
    assert "--train-csv patients.csv --label-column diagnosis" in said
    assert load(tmp_path, train_csv="patients.csv", label_column="diagnosis").classes == ["sick", "well"]


def test_a_flag_column_does_not_beat_class_folders(tmp_path: Path) -> None:
    waves(tmp_path, *(f"{c}/{c}{k}.wav" for c in ("cat", "dog") for k in range(4)))
    rows = [f"{c}{k}.wav,{k}.5,{k % 2}" for c in ("cat", "dog") for k in range(4)]
    write(tmp_path / "info.csv", "file,seconds,has_noise", *rows)
    assert load(tmp_path).classes == ["cat", "dog"]
