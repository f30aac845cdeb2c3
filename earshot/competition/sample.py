"""The built-in sample competition: ten synthesised everyday sounds with a public solution, so that
submissions can be scored.

It is hard on purpose: look-alike pairs (doorbell/phone_ring, rain/wind, engine/dog_growl,
footsteps/clock_tick), noise, reverberation, other sounds in the background, and a few clips where the other
sound is as loud.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

RATE = 16_000
SEED = 2025
TRAIN_RECORDINGS = (2, 3, 4, 2, 3, 4, 2, 3, 4, 3)  # clips of each recording of a class: 30
TEST_RECORDINGS = (2, 2, 2, 2, 2)  # 10
MARKER = ".complete"


def make_tone(hz, seconds: float, rng) -> np.ndarray:
    """A sine of a constant or per-sample frequency in Hz, from a random phase."""
    n = round(seconds * RATE)
    turns = hz * np.arange(1, n + 1) if np.isscalar(hz) else np.cumsum(hz)
    return np.sin(2 * np.pi * (turns / RATE + rng.uniform()))


def make_noise(n: int, rng, low: float = 0.0, high: float = 8000.0, tilt: float = 0.0) -> np.ndarray:
    """Noise between two frequencies (Hz), its amplitude falling as frequency ** -tilt; unit RMS."""
    size = 2 ** int(np.ceil(np.log2(n)))  # an FFT of prime length is slow
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.fft.rfftfreq(size, 1 / RATE)
    # slopes of fourth order at both ends; two squares give the same bits everywhere, a power may not
    low_slope = 1 + np.square(np.square(low / np.maximum(hz, 1.0)))
    high_slope = 1 + np.square(np.square(hz / high))
    gain = np.maximum(hz, 30.0) ** -tilt / (low_slope * high_slope)
    wave = np.fft.irfft(spectrum * gain, size)[:n]
    return wave / np.sqrt(np.mean(wave**2))


def add_event(wave: np.ndarray, event: np.ndarray, start: float) -> None:
    """Add an event to the wave at a second, cut at the wave's end."""
    first = int(start * RATE)
    part = event[: max(0, len(wave) - first)]
    wave[first : first + len(part)] += part


def make_decay(n: int, seconds: float) -> np.ndarray:
    """An envelope of n samples that falls to 1/e in the given time."""
    return np.exp(-np.arange(n) / (seconds * RATE))


def make_bell(n, p, rng, partials, ring, gap):
    """Struck bells, `gap` seconds apart: doorbell and phone ring differ in partials, decay and rhythm
    only."""
    wave = np.zeros(n)
    start = rng.uniform(0, 0.25)
    for strike in range(int((n / RATE - start) / gap) + 1):
        hz = p["pitch"] * (p["interval"] if strike % 2 else 1.0)
        event = sum(make_tone(hz * k, 0.6, rng) / (i + 1) for i, k in enumerate(partials))
        add_event(wave, event * make_decay(len(event), ring), start + strike * gap)
    return wave


def make_doorbell(n, p, rng):
    return make_bell(n, p, rng, (1, 2.0, 3.01), 0.2 + 0.25 * p["a"], 0.4 + 0.3 * p["b"])


def make_phone_ring(n, p, rng):
    return make_bell(n, p, rng, (1, 2.76, 5.4), 0.05 + 0.2 * p["a"], 0.08 + 0.2 * p["b"])


def make_motor(n, p, rng, hz, rough, tilt):
    """A pulse train with harmonics and rough amplitude: engine and growl overlap in pitch."""
    drift = 1 + 0.1 * np.cumsum(rng.standard_normal(n)) / np.sqrt(n) + 0.15 * p["a"] * np.linspace(-1, 1, n)
    phase = np.cumsum(hz * np.maximum(drift, 0.3)) / RATE
    wave = sum(np.sin(2 * np.pi * k * phase + k) * k**-tilt for k in range(1, 16))
    return wave * (1 + rough * make_noise(n, rng, 5, 40)) + 0.3 * make_noise(n, rng, 100, 1500, 0.5)


def make_dog_growl(n, p, rng):
    wave = make_motor(n, p, rng, 55 + 60 * p["b"], 0.6, 0.9)
    swell = np.sin(np.pi * np.clip(np.linspace(-0.1, 1.1, n) * rng.uniform(1, 1.6) % 1, 0, 1))
    return wave * (0.25 + swell)


def make_engine(n, p, rng):
    return make_motor(n, p, rng, 40 + 65 * p["b"], 0.25, 1.1)


def make_rain(n, p, rng):
    wave = make_noise(n, rng, 700 + 800 * p["a"], 6500, 0.2)
    for _ in range(int(20 + 120 * p["b"])):
        drop = np.diff(rng.standard_normal(400)) * make_decay(399, 0.004)
        add_event(wave, drop * rng.uniform(0.4, 2), rng.uniform(0, n / RATE))
    return wave


def make_wind(n, p, rng):
    turns = rng.uniform(0.3, 1.2) * np.arange(n) / RATE + rng.uniform()
    gust = 1 + (0.3 + 0.5 * p["a"]) * np.sin(2 * np.pi * turns)
    return make_noise(n, rng, 100, 1200 + 3500 * p["b"], 0.35) * gust


def make_taps(n, p, rng, gap, jitter, low, high, ring, strength):
    """Short bursts in a rhythm: footsteps and clock tick overlap in pace and pitch."""
    wave = np.zeros(n)
    time = rng.uniform(0, gap)
    while time < n / RATE:
        event = make_noise(2400, rng, low, high) * make_decay(2400, ring)
        event += strength * make_tone(low * 1.5, 0.15, rng) * make_decay(2400, ring)
        add_event(wave, event * rng.uniform(0.6, 1.2), time)
        time += gap * (1 + jitter * rng.uniform(-1, 1))
    return wave


def make_footsteps(n, p, rng):
    return make_taps(n, p, rng, 0.35 + 0.3 * p["a"], 0.15, 120 + 500 * p["b"], 900 + 2500 * p["b"], 0.02, 0.5)


def make_clock_tick(n, p, rng):
    return make_taps(
        n, p, rng, 0.25 + 0.3 * p["a"], 0.02, 500 + 1500 * p["b"], 2500 + 3000 * p["b"], 0.012, 0.8
    )


def make_siren(n, p, rng):
    seconds = np.arange(n) / RATE
    sweep = np.sin(2 * np.pi * (0.4 + 1.6 * p["b"]) * seconds + rng.uniform(0, 6))
    hz = p["pitch"] * (1 + (0.12 + 0.3 * p["a"]) * sweep)
    wave = make_tone(hz, n / RATE, rng)
    return wave + 0.4 * np.tanh(3 * wave)


def make_glass_break(n, p, rng):
    wave = np.zeros(n)
    crash = rng.uniform(0.05, 0.5)
    add_event(wave, 2 * make_noise(4000, rng, 1500, 7500) * make_decay(4000, 0.05), crash)
    for _ in range(int(8 + 25 * p["a"])):
        shard = make_tone(rng.uniform(1800, 7000) * (0.7 + 0.5 * p["b"]), 0.3, rng)
        shard = shard * make_decay(len(shard), rng.uniform(0.01, 0.07)) * rng.uniform(0.2, 1)
        add_event(wave, shard, crash + rng.exponential(0.25))
    return wave


SOUNDS = {
    "clock_tick": make_clock_tick,
    "dog_growl": make_dog_growl,
    "doorbell": make_doorbell,
    "engine": make_engine,
    "footsteps": make_footsteps,
    "glass_break": make_glass_break,
    "phone_ring": make_phone_ring,
    "rain": make_rain,
    "siren": make_siren,
    "wind": make_wind,
}


def make_generator(*key: int) -> np.random.Generator:
    """A random generator for each recording and clip, so that another clip changes no other."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, *key])))


def normalise_level(wave: np.ndarray) -> np.ndarray:
    """The wave at unit RMS."""
    return wave / max(np.sqrt(np.mean(wave**2)), 1e-9)


def add_echo(wave: np.ndarray, room: float, wetness: float, rng) -> np.ndarray:
    """The wave and its echo in a room of decaying noise, at unit RMS.

    Args:
        room: seconds in which the echo falls to about a seventh. wetness: its level relative to the wave.
    """
    length = int(3 * room * RATE)
    response = rng.standard_normal(length) * make_decay(length, room / 2)
    size = 2 ** int(np.ceil(np.log2(len(wave) + length)))
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)]
    return normalise_level(wave + wetness * normalise_level(echo))


def make_clip(label: int, recording: int, take: int) -> np.ndarray:
    """One clip of a recording: the recording fixes the source, the room and the background, the take the
    rest.

    Returns:
        (samples,) int16, 1.2 to 2.4 seconds.
    """
    place_rng, rng = make_generator(label, recording), make_generator(label, recording, take)
    sounds = list(SOUNDS.values())
    p = {
        "pitch": 500 * 2 ** place_rng.uniform(0, 1.5),
        "interval": place_rng.choice([0.75, 0.8, 1.0, 1.25]),
        "a": place_rng.uniform(),
        "b": place_rng.uniform(),
    }
    room, wetness = place_rng.uniform(0.05, 0.3), place_rng.uniform(0, 0.6)
    snr, tilt = place_rng.uniform(2, 20), place_rng.uniform(0, 0.9)
    other = (label + int(place_rng.integers(1, len(sounds)))) % len(sounds)
    chance = place_rng.uniform()
    distance = None  # dB of another sound in the background below the main one
    if chance < 0.05:
        distance = 0.0  # just as loud: no model can be sure of these clips
    elif chance < 0.4:
        distance = place_rng.uniform(4, 12)

    n = int(rng.uniform(1.2, 2.4) * RATE)
    wave = normalise_level(sounds[label](n, p, rng))
    if distance is not None:
        other_traits = {**p, "a": place_rng.uniform(), "b": place_rng.uniform()}
        wave = wave + normalise_level(sounds[other](n, other_traits, rng)) * 10 ** (-distance / 20)
    wave = add_echo(wave, room, wetness, place_rng)
    wave = wave + make_noise(n, rng, 20, 8000, tilt) * 10 ** (-snr / 20)
    wave = wave / np.abs(wave).max() * rng.uniform(0.2, 0.9)
    return np.round(wave * 32767).astype(np.int16)


def make_name(*key) -> str:
    """A file or group name that reveals neither class nor order."""
    return hashlib.sha256(repr((SEED, *key)).encode()).hexdigest()[:8]


def read_recipe() -> str:
    """The marker of a complete folder: a hash of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the whole sample competition, made by this version of the code."""
    marker = Path(folder) / MARKER
    return marker.is_file() and marker.read_text() == read_recipe()


def write_sample(folder: Path) -> None:
    """Write the sample competition's files into a fresh folder."""
    rows = {"audio_train": [], "audio_test": []}
    for label, name in enumerate(SOUNDS):
        for recording, takes in enumerate(TRAIN_RECORDINGS + TEST_RECORDINGS):
            part = "audio_train" if recording < len(TRAIN_RECORDINGS) else "audio_test"
            group = make_name(label, recording)
            for take in range(takes):
                fname = f"{make_name(label, recording, take)}.wav"
                rows[part].append((fname, name, group, (label, recording, take)))
    for part, clips in rows.items():
        (folder / part).mkdir(parents=True)
        for fname, _, _, key in clips:
            soundfile.write(folder / part / fname, make_clip(*key), RATE, subtype="PCM_16")
    train = pd.DataFrame(sorted(r[:3] for r in rows["audio_train"]), columns=["fname", "label", "group"])
    solution = pd.DataFrame(sorted(r[:2] for r in rows["audio_test"]), columns=["fname", "label"])
    shuffled = solution.iloc[make_generator().permutation(len(solution))]
    submission = shuffled.assign(label=next(iter(SOUNDS)))
    for name, table in (("train", train), ("solution", solution), ("sample_submission", submission)):
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def build_sample(folder: Path) -> Path:
    """Make the sample competition in the folder unless it exists; an interrupted build is repeated, and
    caches beside it stay.

    Returns:
        The folder: train.csv, sample_submission.csv, solution.csv, audio_train/, audio_test/; the same bytes
        each time.
    """
    folder = Path(folder)
    if is_complete(folder):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_sample(partial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    for entry in sorted(partial.iterdir()):
        if entry.is_dir():
            shutil.rmtree(folder / entry.name, ignore_errors=True)
        os.replace(entry, folder / entry.name)
    partial.rmdir()
    part = folder / f"{MARKER}.part"
    part.write_text(read_recipe())
    os.replace(part, folder / MARKER)
    return folder
