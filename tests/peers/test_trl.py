"""I9: loss, metrics, gradients and tokens of DPO equal those of trl's DPOTrainer on a tiny model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.chat import ChatTemplate
from limbeck.data.pairs import collate_pairs, encode_pairs
from limbeck.data.preferences import read_preferences
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.formats.weights import WeightFiles
from limbeck.losses.terms import total
from limbeck.model.decoder import Decoder
from limbeck.objectives.preference import Preference
from limbeck.objectives.reference import Frozen
from limbeck.storage import write_json
from tests.reference.checkpoints import save
from tests.reference.small_tokenizer import byte_level

pytestmark = pytest.mark.peers

ROWS = [
    {"prompt": "the cat sat on the", "chosen": " mat.", "rejected": " road and the dog."},
    {"prompt": "the dog ran", "chosen": " to the end of the road.", "rejected": " café."},
    {"prompt": "été", "chosen": " à la mer,", "rejected": " the"},
    {"prompt": "the end of", "chosen": " the mat", "rejected": " the road and the mat"},
]
BETA = 0.3


class Twin:
    """One tiny model and its reference, here and under trl."""

    def __init__(self, folder: Path, family: str) -> None:
        trl = pytest.importorskip("trl")
        import datasets
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.trl, self.folder = trl, folder
        save(family, folder / "reference")
        policy = save(family, folder / "policy", seed=0)
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.02 * torch.randn_like(p))
        policy.save_pretrained(folder / "policy")
        self.load = lambda name: AutoModelForCausalLM.from_pretrained(folder / name, attn_implementation="eager")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.rows = datasets.Dataset.from_list(ROWS)

    def theirs(self, loss: str) -> tuple[float, dict[str, Tensor], dict[str, float], Any]:
        """Loss, gradients and metrics of one batch of all rows, and the tokens of each row."""
        args = self.trl.DPOConfig(
            output_dir=str(self.folder / "out"), beta=BETA, loss_type=[loss], per_device_train_batch_size=len(ROWS),
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None,
        )  # fmt: skip
        trainer = self.trl.DPOTrainer(
            self.load("policy"), self.load("reference"), args=args, train_dataset=self.rows,
            processing_class=self.tokenizer,
        )  # fmt: skip
        batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
        trainer.model.train()
        value = trainer.compute_loss(trainer.model, batch)
        value.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        metrics = {name: sum(found) / len(found) for name, found in trainer._metrics["train"].items()}
        return value.item(), gradients, metrics, trainer.train_dataset

    def ours(self, **options: Any) -> tuple[float, dict[str, Tensor], dict[str, float], Any]:
        policy, tokenizer = load_bundle(str(self.folder / "policy")).model, byte_level(280)
        reference = load_bundle(str(self.folder / "reference")).model
        file = self.folder / "rows.json"
        write_json(file, ROWS)
        pairs, _ = encode_pairs(read_preferences(str(file)), ChatTemplate.named("bare", tokenizer), 48)
        batch = collate_pairs([[p] for p in pairs])
        policy.switch_off_dropout()
        policy.train()
        objective = Preference(Frozen(reference), BETA, **options)
        terms = objective(policy, batch)
        value = total(terms, objective.counts(batch))
        value.backward()  # type: ignore[no-untyped-call]
        metrics = {name: term.sum.item() / term.count for name, term in terms.items()}
        return value.item(), self._gradients(policy), metrics, pairs

    def _gradients(self, policy: Decoder) -> dict[str, Tensor]:
        """Gradients under the names of transformers: written as if they were weights."""
        twin = copy.deepcopy(policy)
        for p, q in zip(twin.parameters(), policy.parameters(), strict=True):
            p.data = q.grad if q.grad is not None else torch.zeros_like(q)
        save_bundle(twin, byte_level(280), self.folder / "gradients", layout="huggingface")
        weights = WeightFiles(self.folder / "gradients")
        return {name: weights.read(name) for name in weights.headers}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin(tmp_path_factory.mktemp("trl"), request.param)


@pytest.mark.filterwarnings("ignore")  # of the libraries, at import and at start
@pytest.mark.parametrize(
    ("loss", "options"), [("sigmoid", {}), ("ipo", {"loss": "ipo", "average": True})], ids=["sigmoid", "ipo"]
)
def test_loss_metrics_and_every_gradient(twin: Twin, loss: str, options: dict[str, Any]) -> None:
    value, gradients, metrics, _ = twin.theirs(loss)
    own_value, own, own_metrics, _ = twin.ours(**options)
    assert own_value == pytest.approx(value, rel=1e-5)
    assert own.keys() == gradients.keys()
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert norm > 0.01
    for name, theirs in gradients.items():
        assert (own[name] - theirs).norm() <= 1e-5 * norm, name
    if loss == "sigmoid":  # trl's rewards under ipo are sums over tokens
        pairs = {
            "rewards/chosen": "reward_chosen", "rewards/rejected": "reward_rejected", "rewards/margins": "margin",
            "rewards/accuracies": "accuracy", "logps/chosen": "log_prob_chosen", "logps/rejected": "log_prob_rejected",
        }  # fmt: skip
        assert {ours: own_metrics[ours] for ours in pairs.values()} == pytest.approx(
            {ours: metrics[theirs] for theirs, ours in pairs.items()}, rel=1e-4, abs=1e-5
        )


@pytest.mark.filterwarnings("ignore")
def test_tokens(twin: Twin) -> None:
    _, _, _, theirs = twin.theirs("sigmoid")
    _, _, _, ours = twin.ours()
    for row, pair in zip(theirs, ours, strict=True):
        for name, side in (("chosen", pair), ("rejected", pair.rejected)):
            assert side.ids.tolist() == row["prompt_ids"] + row[f"{name}_ids"]
            assert int(side.target.sum()) == len(row[f"{name}_ids"])
            assert side.ids[-1] == byte_level(280).eos_id


def test_the_models_are_not_one(twin: Twin) -> None:
    a, b = (load_bundle(str(twin.folder / name)).model for name in ("policy", "reference"))
    assert isinstance(a, nn.Module) and not torch.equal(next(a.parameters()), next(b.parameters()))
