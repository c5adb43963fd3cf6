"""Small random models as transformers saves them, for tests that read them back."""
import shutil

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def bert_config() -> BertConfig:
    return BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
                      max_position_embeddings=20, type_vocab_size=3)


@pytest.fixture(scope="session")
def llama_sizes() -> dict:
    """Arguments of LlamaConfig; heads of 8 although 24 / 4 is 6."""
    return dict(vocab_size=40, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                intermediate_size=20, max_position_embeddings=30, rope_theta=5e4, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def save():
    """save(model, folder) → the model, all its weights random: fresh norms and biases would be ones and zeros."""
    def randomize_and_save(model: torch.nn.Module, folder) -> torch.nn.Module:
        torch.manual_seed(3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
        return model
    return randomize_and_save


@pytest.fixture(scope="session")
def bert_saved(tmp_path_factory, save, bert_config):
    """(folder, the model in it). Not to be changed."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, save(BertModel(bert_config), folder)


@pytest.fixture(scope="session")
def llama_saved(tmp_path_factory, save, llama_sizes):
    """(folder, the model in it). Not to be changed."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, save(LlamaForCausalLM(LlamaConfig(**llama_sizes)), folder)


@pytest.fixture
def bert(bert_saved, tmp_path):
    """A copy of the folder that a test may change."""
    return shutil.copytree(bert_saved[0], tmp_path / "model")


@pytest.fixture
def llama(llama_saved, tmp_path):
    """A copy of the folder that a test may change."""
    return shutil.copytree(llama_saved[0], tmp_path / "model")
