"""Domains: what the presets promise, and what a mistaken YAML file is told."""

import dataclasses

import pytest

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.domains import Domain, available_domains, load_domain
from hf_clip_domain.domains.loading import OWN_TRAINING_FIELDS
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss


def write(tmp_path, text, name="mine.yaml"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_four_presets_are_there():
    assert available_domains() == ["general", "industrial", "medical", "scientific"]


@pytest.mark.parametrize("name", available_domains())
def test_preset_is_complete_and_usable(name, tmp_path):
    domain = load_domain(name)
    assert domain.name == name and domain.title and domain.description
    assert len(domain.prompts) >= 6 and len(domain.classes) >= 8 and domain.metrics
    for section in (domain.training, domain.training_starter, domain.training_towers):
        ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **section)  # refuses unknown names


@pytest.mark.parametrize("name", available_domains())
def test_every_choice_of_a_preset_has_a_reason(name):
    domain = load_domain(name)
    chosen = [f"training.{key}" for key in domain.training]
    chosen += [f"training_starter.{key}" for key in domain.training_starter]
    chosen += [f"training_towers.{key}" for key in domain.training_towers]
    chosen += [f"text.rewrites.{key}" for key in domain.text.rewrites]
    chosen += ["image.square", "image.fill", "image.grey", "image.window", "image.clahe_clip"]
    chosen += ["base_model", "loss", "metrics"]
    settings = ("crop_scale", "aspect", "mirror", "quarter_turns", "brightness", "contrast", "saturation", "hue")
    chosen += [f"augment.{key}" for key in settings]
    assert [path for path in chosen if len(domain.reasons.get(path, "")) < 8] == []


@pytest.mark.parametrize("name", available_domains())
def test_saved_domain_loads_back_equal(name, tmp_path):
    domain = load_domain(name)
    domain.save(tmp_path / "run")
    assert load_domain(tmp_path / "run" / "domain.yaml") == domain
    assert load_domain(tmp_path / "run") == domain


def test_partial_file_has_safe_defaults(tmp_path):
    assert load_domain(write(tmp_path, "name: tiny\n")) == Domain(name="tiny")


def test_name_is_needed(tmp_path):
    with pytest.raises(ClipDomainError, match=r"mine\.yaml: `name` is missing"):
        load_domain(write(tmp_path, "title: Nameless\n"))


def test_extends_merges_and_null_takes_away(tmp_path):
    file = write(
        tmp_path,
        "extends: medical\nname: chest\ntraining: {learning_rate: 2e-5}\nimage: {clahe_clip: 2}\n"
        "text:\n  rewrites: {provider: null}\n  glossary: {PTX: pneumothorax}\n",
    )
    domain, medical = load_domain(file), load_domain("medical")
    assert domain.training == {**medical.training, "learning_rate": 2e-5}
    assert domain.image == dataclasses.replace(medical.image, clahe_clip=2.0)
    assert domain.text.glossary == {**medical.text.glossary, "PTX": "pneumothorax"}
    assert set(medical.text.rewrites) - set(domain.text.rewrites) == {"provider"}
    assert "training.learning_rate" not in domain.reasons, "the preset's reason is not one for another value"
    assert domain.reasons["augment.mirror"] == medical.reasons["augment.mirror"]


def test_extends_a_file_beside_it(tmp_path):
    write(tmp_path, "name: base\ntitle: Base\nprompts: ['{} there']\n", "base.yaml")
    domain = load_domain(write(tmp_path, "extends: base.yaml\nname: above\n"))
    assert (domain.name, domain.title, domain.prompts) == ("above", "Base", ("{} there",))


def test_extends_in_a_circle(tmp_path):
    write(tmp_path, "extends: mine.yaml\nname: base\n", "base.yaml")
    with pytest.raises(ClipDomainError, match="circle"):
        load_domain(write(tmp_path, "extends: base.yaml\nname: above\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmnt: {}", r"unknown key 'augmnt' \(did you mean 'augment'\?\)"),
        ("augment: {miror: never}", r"unknown key 'augment\.miror' \(did you mean 'mirror'\?\)"),
        ("augment: {mirror: unless_side}", r"augment\.mirror: expected one of never, .*did you mean 'unless_sided'"),
        ("augment: {hue: red}", r"augment\.hue: expected a number, found str 'red'"),
        ("augment: {hue: 0.9}", r"augment\.hue: expected 0 to 0\.5, found float 0\.9"),
        ("augment: {crop_scale: [0.5]}", r"augment\.crop_scale: expected 2 values"),
        ("augment: {crop_scale: [0.9, 0.5]}", r"augment\.crop_scale: expected two shares"),
        ("image: {grey: 'yes'}", r"image\.grey: expected true or false, found str 'yes'"),
        ("image: {window: [99, 1]}", r"image\.window: expected two percentiles"),
        ("image: pad", r"image: expected a mapping"),
        ("training: {learning_rat: 0.1}", r"unknown key 'training\.learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("training: {learning_rate: fast}", r"training\.learning_rate: expected a number"),
        ("training_starter: {bf16: 3}", r"training_starter\.bf16: expected true or false"),
        ("text: {rewrites: {x: {pattern: '('}}}", r"text\.rewrites\.x: not a regular expression"),
        ("text: {rewrites: {x: {replace: a}}}", r"text\.rewrites\.x: `pattern` is missing"),
        ("text: {glossary: [CT]}", r"text\.glossary: expected a mapping"),
        ("prompts: ['a photo']", r"prompts\[0\]: expected a template with one \{\}"),
        ("prompts: a photo of {}", r"prompts: expected a list"),
        ("metrics: [recall]", r"metrics\[0\]: expected a key such as text_to_image/recall@10"),
        ("classes: [1]", r"classes\[0\]: expected text"),
        ("title: [", r"is not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ClipDomainError, match=message) as caught:
        load_domain(write(tmp_path, f"name: mine\n{text}\n"))
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_domain_lists_the_known():
    with pytest.raises(ClipDomainError, match="did you mean 'medical'.*general, industrial, medical, scientific"):
        load_domain("medicl")


def test_own_training_fields_exist():
    assert set(OWN_TRAINING_FIELDS) <= {field.name for field in dataclasses.fields(ClipTrainingArguments)}


@pytest.mark.parametrize(
    ("caption", "mirror", "turn"),
    [
        ("Scratches in the centre.", True, True),
        ("Scratches in the upper left.", False, False),
        ("The LEFTMOST pit.", False, False),
        ("One region, in the lower centre.", True, False),
        ("A horizontal scratch.", True, False),
        ("Turned clockwise by the press.", False, False),
        ("Copyright of an overlapping weld.", True, True),
    ],
)
def test_industrial_captions_decide_on_mirror_and_turns(caption, mirror, turn):
    augment = load_domain("industrial").augment
    assert (augment.may_mirror(caption), augment.may_turn(caption)) == (mirror, turn)


@pytest.mark.parametrize("name", ["medical", "scientific"])
def test_bodies_and_figures_are_never_mirrored(name):
    assert not load_domain(name).augment.may_mirror("A heart.")


def test_another_loss_does_not_inherit_the_settings_of_the_first(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: industrial\nloss: info_nce\n")
    mine = load_domain(tmp_path / "mine.yaml")
    assert mine.loss == "info_nce" and mine.loss_settings == {}
    (tmp_path / "other.yaml").write_text("name: other\nextends: industrial\nprompts: ['a {}.']\n")
    assert load_domain(tmp_path / "other.yaml").loss_settings == load_domain("industrial").loss_settings


@pytest.mark.parametrize("name", available_domains())
def test_every_domains_loss_can_be_built(name):
    domain = load_domain(name)
    build_loss(domain.loss, **domain.loss_settings)
