"""Prompt pools, queries, fusions of pools and of blocks, and the k-means start."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from student.network.fusion import BroadcastFusion, ConcatFusion, ModulationFusion, TokenFusion
from student.network.prompts import PoolFusion, PromptPool
from student.training.setup import kmeans


def pool(size=6, top_k=3, length=2, dim=16, noise=0.1) -> PromptPool:
    return PromptPool(size, top_k, length, dim, noise)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.data(), st.integers(1, 3), st.integers(1, 4))
def test_composition_holds_its_shapes_and_weights(size, data, length, batch):
    top_k = data.draw(st.integers(1, size))
    composed = pool(size, top_k, length)(torch.randn(batch, 16))
    assert composed.prompt_BD.shape == (batch, 16) and composed.similarity_BN.shape == (batch, size)
    assert composed.index_BK.shape == (batch, top_k)
    assert all(len(set(row)) == top_k for row in composed.index_BK.tolist())
    torch.testing.assert_close(composed.weight_BK.sum(1), torch.ones(batch))


def test_top_k_of_the_whole_pool_is_a_dense_softmax():
    prompts, query = pool(top_k=6).eval(), torch.randn(4, 16)
    dense = prompts(query).similarity_BN.softmax(1) @ prompts.values_NLD.flatten(1)
    torch.testing.assert_close(prompts(query).prompt_BD, prompts.aggregate(dense))


def test_noise_changes_the_choice_in_training_only_and_never_the_similarities():
    prompts, query = pool(noise=5.0), torch.randn(8, 16)
    chosen = [prompts(query).index_BK for _ in range(4)]
    assert any(not torch.equal(chosen[0], other) for other in chosen[1:])
    similarity = prompts(query).similarity_BN
    prompts.eval()
    assert torch.equal(prompts(query).similarity_BN, similarity)
    assert torch.equal(prompts(query).index_BK, similarity.topk(3).indices)


def test_temperature_is_clamped():
    prompts, query = pool().eval(), torch.randn(2, 16)
    at = {}
    for value in (0.001, 0.1, 2.0, 50.0):
        prompts.temperature.data.fill_(value)
        at[value] = prompts(query).similarity_BN
    assert torch.equal(at[0.001], at[0.1]) and torch.equal(at[2.0], at[50.0])
    torch.testing.assert_close(at[0.1], 20 * at[2.0])


def test_pool_fusion_is_attention_with_one_key():
    ours, reference = PoolFusion(32, 0.1).eval(), torch.nn.MultiheadAttention(32, 8, 0.1, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight[64:].copy_(ours.value.weight)
        reference.in_proj_bias[64:].copy_(ours.value.bias)
        reference.out_proj.load_state_dict(ours.out.state_dict())
    domain, task = torch.randn(2, 3, 32)
    attended = reference(domain[:, None], task[:, None], task[:, None])[0][:, 0]
    x = ours.norm(attended + domain)
    torch.testing.assert_close(ours(domain, task), x + ours.ffn(x))


def test_pool_fusion_dropout_loses_whole_heads():
    fusion = PoolFusion(32, 0.5)
    torch.nn.init.eye_(fusion.out.weight)
    seen = []
    fusion.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fusion(torch.zeros(64, 32), torch.randn(64, 32))
    heads = (seen[0] - fusion.out.bias).abs().unflatten(-1, (8, 4)) < 1e-6
    assert torch.equal(heads.all(-1), heads.any(-1)) and 0.3 < heads.float().mean() < 0.7


def test_tokens_reduce_to_broadcast_with_one_token():
    broadcast, tokens = BroadcastFusion(8, 16), TokenFusion(8, 16)
    assert broadcast.weights() == (0.5, 0.5), "both gates start equal"
    tokens.load_state_dict(broadcast.state_dict(), strict=False)
    x, fused = torch.randn(2, 5, 7, 8), torch.randn(2, 16)
    one = tokens(x, *tokens.prepare(fused[:, None], torch.zeros(2, 1)))
    torch.testing.assert_close(one, broadcast(x, *broadcast.prepare(fused)))
    # and equal tokens weigh as one
    three = tokens(x, *tokens.prepare(fused[:, None].expand(2, 3, 16), torch.zeros(2, 3)))
    torch.testing.assert_close(three, one)


def test_tokens_equal_plain_cross_attention():
    fusion, x = TokenFusion(8, 16), torch.randn(2, 5, 7, 8)
    tokens, log_weight = torch.randn(2, 4, 16), torch.randn(2, 4)
    fusion.gate.data.copy_(torch.tensor([0.3, -0.4]))
    w_feature, w_prompt = fusion.weights()
    q = fusion.query(x.flatten(1, 2)) * w_feature
    k, v = (part(fusion.norm(tokens)) * w_prompt for part in (fusion.key, fusion.value))
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=log_weight[:, None].expand(2, 35, 4))
    expected = x * w_feature + fusion.out(plain).view_as(x)
    torch.testing.assert_close(fusion(x, *fusion.prepare(tokens, log_weight)), expected)


def test_modulation_and_concat_equal_their_definitions():
    x, fused = torch.randn(2, 5, 7, 8), torch.randn(2, 16)
    modulation, concat = ModulationFusion(8, 16), ConcatFusion(8, 16)
    for fusion in (modulation, concat):
        fusion.gate.data.copy_(torch.tensor([0.3, -0.4]))
    w_feature, w_prompt = modulation.weights()
    scale, shift = modulation.mlp(fused)[:, None, None].chunk(2, -1)
    expected = x * w_feature * (1 + scale * w_prompt) + shift * w_prompt
    torch.testing.assert_close(modulation(x, *modulation.prepare(fused)), expected)
    spread = concat.project(fused)[:, None, None].expand_as(x) * w_prompt
    expected = concat.mix(torch.cat((x * w_feature, spread), -1))
    torch.testing.assert_close(concat(x, *concat.prepare(fused)), expected)


def test_kmeans_finds_separate_clusters_and_is_repeatable():
    random = np.random.default_rng(0)
    centers = np.linalg.qr(random.standard_normal((16, 16)))[0][:4]
    rows = np.repeat(centers, 20, axis=0) + 0.02 * random.standard_normal((80, 16))
    found = kmeans(rows, 4, seed=1)
    assert np.array_equal(found, kmeans(rows, 4, seed=1))
    assert sorted((found @ centers.T).argmax(1)) == [0, 1, 2, 3]
    assert (found @ centers.T).max(1).min() > 0.99


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_kmeans_never_gives_equal_centroids(rows):
    found = kmeans(np.random.default_rng(7).standard_normal((rows, 8)), 6)
    similarity = found @ found.T - 2 * np.eye(6)
    assert found.shape == (6, 8) and similarity.max() < 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_kmeans_without_rows_says_so():
    with pytest.raises(ValueError, match="at least one"):
        kmeans(np.zeros((0, 8)), 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_pool_started_from_centroids_knows_the_prior_at_step_0(seed):
    prompts, rng = pool(size=6, top_k=1, dim=64), np.random.default_rng(seed)
    centroids_ND = torch.from_numpy(np.linalg.qr(rng.normal(size=(64, 64)))[0][:6]).float()
    prompts.start_from(centroids_ND)
    composed = prompts.eval()(centroids_ND * 7)
    assert composed.index_BK[:, 0].tolist() == list(range(6))
    torch.testing.assert_close(composed.prompt_BD, prompts.aggregate[1:](centroids_ND))  # the mean over equal tokens
    likeness_NN = F.cosine_similarity(composed.prompt_BD[:, None], centroids_ND[None], dim=-1)
    assert likeness_NN.argmax(1).tolist() == list(range(6))
    fresh_N = F.cosine_similarity(pool(dim=64)(centroids_ND).prompt_BD, centroids_ND)
    assert fresh_N.mean() < likeness_NN.diagonal().mean() / 2
    with pytest.raises(ValueError, match=r"\[6, 64\]"):
        prompts.start_from(torch.zeros(5, 64))
