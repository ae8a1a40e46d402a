"""The report generator: stage 1's vision, two Hopfield memories over the banks, and a causal language model.

The language model reads ``[before ; visual tokens ; queries ; visual memory ; report memory ; after ; report]``, where
*before* and *after* are the prompt on either side of ``{image}`` (``Prompt``). If it reads retrieved sentences as text,
*after* is ``[between ; text ; after]``, with the prompt on either side of ``{retrieved}``. If it reads a study's
clinical context, this stands before them (``amrg.models.context``), with the text of the patient's earlier study; the
films of that study stand behind the streams (``amrg.models.prior``).

Shape legend: B studies, M films, N visual tokens, Q = 14 queries, D query width, E width of the language model,
P positions of the streams, L tokens of the retrieved text, C tokens of the context, T report tokens, S positions of the
prefix, J rows.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from amrg.config import DecoderConfig, GenerateConfig, MemoryConfig
from amrg.config_files import config_to_dict, read_config_section
from amrg.data.context import Context
from amrg.data.labels import LABELS
from amrg.data.prior import Prior
from amrg.data.text.outline import strip_outline
from amrg.errors import UserError
from amrg.models.cam import activation_maps
from amrg.models.classifier import DiseaseClassifier, mean_over_views
from amrg.models.context import ContextTokenizer
from amrg.models.cross_attention import CrossAttention
from amrg.models.decoder import base_fingerprint, embedding_size, load_saved_decoder, save_decoder
from amrg.models.decoder_files import SMALL_LLAMA
from amrg.models.decoder_smoke_test import unpacked_sequences
from amrg.models.forced_prefix import ForcedPrefix
from amrg.models.hopfield import HopfieldMemory, RetrievalSteps, retrieve_in_lockstep
from amrg.models.memory_layer import AnyBank
from amrg.models.prior import PriorFilms, PriorInputs, PriorTokenizer
from amrg.models.profiling import DECODER, MEMORY, profile_region
from amrg.models.prompt import Prompt, drop_positions, stream_faults
from amrg.models.regions import PLACES, regions_of_films, regions_of_studies
from amrg.models.retrieval_loss import Wanted, association_loss, retrieval_loss, teacher_retrieval
from amrg.models.tokenizer import IGNORE_INDEX, ReportTokenizer
from amrg.models.vision_output import MEMORIES, VisionOutput, pool_token_grid
from amrg.models.zero3 import Zero3Config, gathered_parameters

STREAMS = ("visual tokens", "queries", "visual memory", "report memory")
WEIGHTS = "model.safetensors"
NO_PRIOR = PriorInputs()

# The penalty applies to generated tokens only: the prefix of embeddings has no token ids.
warnings.filterwarnings("ignore", "Passing `repetition_penalty` with `inputs_embeds`", UserWarning)


class Association(NamedTuple):
    """Heaviest rows that each query of studies retrieves: weights [B, Q, J], mean over heads, and rows (−1: none)."""

    weights_BQJ: Tensor
    rows_BQJ: Tensor


class GeneratorOutput(NamedTuple):
    """Losses per study, [B]: cross-entropy summed over the report's tokens, and the retrieval losses if requested."""

    loss_B: Tensor
    retrieval_B: Tensor | None = None
    association_B: Tensor | None = None


class ReportGenerator(nn.Module):
    """Report generator (see the module's docstring), built from its parts or with ``from_pretrained``.

    Args:
        stage1: the classifier; its parameters are trained if they require gradients.
        decoder: a causal LM of transformers (or peft around one).
        tokenizer: the decoder's tokenizer.
        banks: the visual and the report bank, normalized; rows are non-persistent buffers.
        memory: settings of both memories.
        settings: settings of the streams and the prompt.
        map_method: activation map for regions; must be the method that mined the visual bank.
    """

    def __init__(
        self,
        stage1: DiseaseClassifier,
        decoder: Any,
        tokenizer: PreTrainedTokenizerBase,
        banks: Sequence[AnyBank],
        memory: MemoryConfig,
        settings: DecoderConfig,
        map_method: str = "layercam",
    ) -> None:
        super().__init__()
        for fault in stream_faults(settings):
            raise UserError(fault)
        self.stage1, self.decoder, self.tokenizer = stage1, decoder, tokenizer
        self.memory_config, self.settings, self.map_method = memory, settings, map_method
        dim, width = stage1.config.query_dim, decoder.get_input_embeddings().embedding_dim
        sharpness = None if memory.visual_query == "queries" else memory.sharpness
        # Text needs the memory even without its vectors.
        visual = settings.use_visual_memory or settings.use_retrieved_text
        self.visual_memory = _memory(memory, dim, banks[0], sharpness) if visual else None
        if self.visual_memory is not None and not settings.use_visual_memory:
            self.visual_memory.requires_grad_(False)
        self.report_memory = _memory(memory, dim, banks[1]) if settings.use_report_memory else None
        self.projection = nn.Linear(dim, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(settings.dropout)
        # Streams and position embeddings are initialized with the standard deviation of what words enter with.
        embeddings = decoder.get_input_embeddings().weight
        with gathered_parameters([embeddings]):  # `amrg plan` builds a model on the meta device
            size = 1.0 if embeddings.is_meta else embedding_size(decoder.get_input_embeddings())
        nn.init.constant_(self.norm.weight, size)
        # Position embeddings of the prefix: a decoder trained from scratch could not tell the streams apart otherwise.
        self.mark_PE = nn.Parameter(torch.randn(self.prefix_length, width) * size)
        if not self.prefix_length:  # context alone is read: the loss gives these no gradient
            for module in (self.projection, self.norm):
                module.requires_grad_(False)
            self.mark_PE.requires_grad_(False)
        if settings.use_queries:
            # Initialized 4x larger, so that a certain finding dominates the embedding of its query.
            self.finding_QE = nn.Parameter(torch.randn(len(stage1.disease_queries), width) * 4 * size)
        if "films" in settings.prior:
            # What tells an earlier film from the study's own, at the same positions.
            self.earlier_E = nn.Parameter(torch.randn(width) * size)
        self.prompt = Prompt.from_settings(settings, tokenizer, decoder.generation_config.eos_token_id)

    def encode_images(
        self, images_M3HW: Tensor, views: Sequence[int], kinds: Sequence[int] | None = None
    ) -> VisionOutput:
        """Encode films with stage 1; the films of a study are averaged or weighted token by token.

        Args:
            images_M3HW: films of all studies in order, in [0, 1].
            views: number of films of each study.
            kinds: as of ``DiseaseClassifier.forward``.
        """
        output = self.stage1(images_M3HW, kinds=kinds)
        tokens = pool_token_grid(
            output.tokens_BND, self.settings.max_visual_tokens if self.settings.use_visual_tokens else 0
        )
        with gathered_parameters(list(self.stage1.cam_head.parameters())):
            maps_MQHW = activation_maps(self.stage1.cam_head, output.fine_BHWC, self.map_method)
        regions = regions_of_studies(regions_of_films(output.projected_BHWD, maps_MQHW), views)
        film_BD = mean_over_views(output.projected_BHWD.mean((1, 2)), views)
        tokens = output.of_studies(tokens, views, by_label=False)
        queries, logits = (output.of_studies(x, views) for x in (output.queries_BQD, output.scores_BK))
        return VisionOutput(tokens, queries, logits, *regions, film_BD)

    @property
    def vision_output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the fields of ``VisionOutput`` for one study."""
        tokens, queries, dim = self.vision_shape
        regions = (queries, dim), (queries, PLACES), (queries,), (queries, 5)
        return (tokens, dim), (queries, dim), (queries,), *regions, (dim,)

    def memory_states(self, vision: VisionOutput) -> dict[str, Tensor]:
        """Query states [B, Q, D] of each memory (``VisionOutput.memory_states``)."""
        return vision.memory_states(self.memory_config.visual_query)

    def freeze_visual_query(self) -> None:
        """Freeze the query and key parameters of a visual memory that regions query.

        Without an association loss the report's loss degrades them: on the demo, the share of a finding's association
        on its own rows fell from 0.79 to 0.35 (docs/results.md).
        """
        memory = self.visual_memory
        if isinstance(memory, HopfieldMemory) and memory.sharpness_H is not None:
            for one in (memory.state_norm, memory.q_proj, memory.k_proj, memory.key_gain, memory.key_shift):
                one.requires_grad_(False)

    @property
    def memories(self) -> dict[str, "HopfieldMemory | CrossAttention"]:
        """The memories in use, by ``MEMORIES``."""
        both = zip(MEMORIES, (self.visual_memory, self.report_memory), strict=True)
        return {name: memory for name, memory in both if memory is not None}

    @property
    def streamed(self) -> dict[str, "HopfieldMemory | CrossAttention"]:
        """The memories whose vectors the language model reads."""
        return {n: m for n, m in self.memories.items() if n != MEMORIES[0] or self.settings.use_visual_memory}

    @property
    def vision_shape(self) -> tuple[int, int, int]:
        """N, Q and D of ``VisionOutput``."""
        queries, dim = len(LABELS), self.stage1.config.query_dim  # not the parameter's shape: ZeRO 3 empties it
        grid = torch.empty(1, self.stage1.encoder.coarse_grid**2, 1)
        return (
            pool_token_grid(grid, self.settings.max_visual_tokens if self.settings.use_visual_tokens else 0).shape[1],
            queries,
            dim,
        )

    @property
    def stream_slices(self) -> dict[str, slice]:
        """Slice of each of ``STREAMS`` in the P positions of ``embed_streams``; empty for a disabled stream."""
        tokens, queries, _ = self.vision_shape
        use = self.settings
        sizes = tokens, *(queries * on for on in (use.use_queries, use.use_visual_memory, use.use_report_memory))
        edges = pairwise([0, *accumulate(sizes)])
        return {name: slice(*ends) for name, ends in zip(STREAMS, edges, strict=True)}

    @property
    def prefix_length(self) -> int:
        """Number of positions P of ``embed_streams``."""
        return max(place.stop for place in self.stream_slices.values())

    def refuse_too_long(self, setting: str, tokens: int) -> None:
        """Raise UserError if the language model has too few positions for the prefix and a report.

        Args:
            setting: that decides the length of the report, for the message.
            tokens: of the report, at most.
        """
        # A small Llama from scratch knows no other positions than those of its training.
        config = self.decoder.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
        if self.settings.model == SMALL_LLAMA or not isinstance(limit, int):
            return
        text = self.settings.retrieved_tokens if self.settings.use_retrieved_text else 0
        text += self.settings.context_tokens if self.settings.context else 0
        text += self.settings.prior_tokens * bool(self.settings.prior) + self.prior_positions
        prompt = self.prompt
        words = len(prompt.before) + len(prompt.behind) + len(prompt.between) + len(prompt.after)
        prefix = words + self.prefix_length + text
        if prefix + tokens > limit:
            raise UserError(
                f"{setting} {tokens} and the {prefix} positions of prompt and streams before the report are more than "
                f"the {limit} positions of decoder.model {self.settings.model}: lower it to {limit - prefix} or less"
            )

    def embed_streams(self, vision: VisionOutput, group_B: Tensor, query_vision: VisionOutput | None = None) -> Tensor:
        """Embed studies for the language model, [B, P, E].

        Args:
            vision: from ``encode_images``.
            group_B: ``group_id`` of each study's patient; rows of that patient are masked.
            query_vision: output for other studies that query the memories instead; None: the studies themselves.
        """
        remembered, _ = self._retrieve(query_vision or vision, group_B)
        return self._fuse(vision, remembered)

    def _retrieve(
        self, query_vision: VisionOutput, group_B: Tensor, own_BQD: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Retrieve from each memory, [B, Q, D]; with the studies' own sentences also the ``retrieval_loss``, [B]."""
        states, hidden = self.memory_states(query_vision), self.hidden_groups(group_B)
        with profile_region(MEMORY):
            steps: list[RetrievalSteps[Any]] = [
                memory.forward_steps(states[name], query_group=hidden) for name, memory in self.streamed.items()
            ]
            if own_BQD is None or self.report_memory is None:
                return [reading.out_BLO for reading in retrieve_in_lockstep(steps)], None
            answers: list[Any] = retrieve_in_lockstep([*steps, teacher_retrieval(self.report_memory, own_BQD, hidden)])
            *readings, target_BQD = answers
            loss_B = retrieval_loss(readings[-1].rows_BLD, target_BQD, own_BQD)
            return [reading.out_BLO for reading in readings], loss_B

    def _fuse(self, vision: VisionOutput | PriorFilms, remembered: list[Tensor]) -> Tensor:
        """Project films and what was retrieved to the language model's space, [B, P, E]; P is less without it."""
        tokens_BND, queries_BQD, logits_BQ = vision[:3]
        parts = [tokens_BND, *([queries_BQD] if self.settings.use_queries else []), *remembered]
        projected_BPE = self.norm(self.projection(self.dropout(torch.cat(parts, dim=1))))
        streams_BPE = projected_BPE + self.mark_PE[: projected_BPE.shape[1]]
        streams_BPE = drop_positions(streams_BPE, self.settings.prefix_dropout, self.training)
        if not self.settings.use_queries:
            return streams_BPE
        # An explicit embedding of stage 1's probability, which is only one of many directions of the query.
        finding_signal_BQE = logits_BQ.sigmoid()[..., None] * self.finding_QE
        before = tokens_BND.shape[1]
        return streams_BPE + F.pad(
            finding_signal_BQE, (0, 0, before, streams_BPE.shape[1] - before - finding_signal_BQE.shape[1])
        )

    def _prefix(
        self,
        streams_BPE: Tensor,
        retrieved_BL: Tensor | None,
        context_BC: Tensor | None,
        prior: PriorInputs,
    ) -> tuple[Tensor, Tensor]:
        """Build the prefix of the language model and its mask (``Prompt.embed``)."""
        if prior.text_BR is not None:
            context_BC = prior.text_BR if context_BC is None else torch.cat([context_BC, prior.text_BR], dim=1)
        prior_BPE = prior_B = None
        if prior.films is not None:
            prior_BPE, prior_B = self._fuse(prior.films, []) + self.earlier_E, prior.films.given_B
        embedding = self.decoder.get_input_embeddings()
        return self.prompt.embed(embedding, streams_BPE, retrieved_BL, self.training, context_BC, prior_BPE, prior_B)

    def hidden_groups(self, group_B: Tensor) -> Tensor | None:
        """Groups whose rows both memories mask for each study; None if masking is off."""
        return group_B if self.memory_config.mask_same_patient else None

    def forward(
        self,
        vision: VisionOutput,
        group_B: Tensor,
        report_BT: Tensor,
        own_BQD: Tensor | None = None,
        wanted: Wanted | None = None,
        retrieved_BL: Tensor | None = None,
        context_BC: Tensor | None = None,
        prior: PriorInputs = NO_PRIOR,
    ) -> GeneratorOutput:
        """Compute the losses of reports.

        Args:
            vision, group_B: as for ``embed_streams``.
            report_BT: token ids of the reports with end token, padded on the right with ``IGNORE_INDEX``.
            own_BQD: sentences of the same reports by label, as rows of the report bank, for ``retrieval_loss``.
            wanted: rows of the visual bank that the regions should retrieve, for ``association_loss``.
            retrieved_BL: token ids of the retrieved text, padded on the left with ``IGNORE_INDEX``; None: no text.
            context_BC: token ids of the context, padded alike (``amrg.models.context``); None: no context.
            prior: earlier studies (``amrg.models.prior``).
        """
        remembered, retrieval_B = self._retrieve(vision, group_B, own_BQD)
        embedding = self.decoder.get_input_embeddings()
        streams_BPE = self._fuse(vision, remembered)
        prefix, mask_BS = self._prefix(streams_BPE, retrieved_BL, context_BC, prior)
        placed = {}
        if retrieved_BL is not None or context_BC is not None or any(part is not None for part in prior):
            mask_BS = F.pad(mask_BS, (0, report_BT.shape[1]), value=1)
            placed = {"attention_mask": mask_BS, "position_ids": (mask_BS.cumsum(1) - 1).clamp_min(0)}
        report = drop_positions(embedding(report_BT.clamp(min=0)), self.settings.token_dropout, self.training)
        with profile_region(DECODER), unpacked_sequences():
            logits = self.decoder(
                inputs_embeds=torch.cat([prefix, report.to(prefix.dtype)], dim=1),
                logits_to_keep=report_BT.shape[1] + 1,  # from the last prompt position on; padding follows, so no mask
                use_cache=False,
                **placed,
            ).logits[:, :-1]
            losses = F.cross_entropy(
                logits.float().transpose(1, 2), report_BT, ignore_index=IGNORE_INDEX, reduction="none"
            )
        association_B = None
        if wanted is not None and isinstance(self.visual_memory, HopfieldMemory):
            states_BQD = self.memory_states(vision)[MEMORIES[0]]
            association_B = association_loss(self.visual_memory, states_BQD, self.hidden_groups(group_B), wanted)
        return GeneratorOutput(losses.sum(1), retrieval_B, association_B)

    @torch.no_grad()
    def generate(
        self,
        vision: VisionOutput,
        group_B: Tensor,
        decoding: GenerateConfig,
        synced: bool = False,
        streamer: BaseStreamer | None = None,
        hidden: Sequence[str] = (),
        query_vision: VisionOutput | None = None,
        forced_prefixes: Sequence[str] = (),
        retrieved_BL: Tensor | None = None,
        context_BC: Tensor | None = None,
        prior: PriorInputs = NO_PRIOR,
    ) -> list[str]:
        """Write a report for each study, with the mark of the impression if the sections are separate.

        Args:
            vision, group_B, query_vision: as for ``embed_streams``.
            decoding: beams, lengths and penalties.
            synced: continue until all ranks are done (required if ZeRO 3 partitions the parameters).
            streamer: receives each token as it is generated; one study and one beam only.
            hidden: names of ``STREAMS`` whose positions are set to zero, as ``prefix_dropout`` does in training.
            forced_prefixes: beginning of each study's text (``amrg.models.composer``); empty: no forced beginning.
            retrieved_BL, context_BC, prior: as for ``forward``.
        """
        streams_BPE = self.embed_streams(vision, group_B, query_vision)
        for name in hidden:
            streams_BPE[:, self.stream_slices[name]] = 0.0
        prefix, mask_BS = self._prefix(streams_BPE, retrieved_BL, context_BC, prior)
        written = self.decoder.generate(
            inputs_embeds=prefix,
            attention_mask=mask_BS,
            do_sample=False,
            num_beams=decoding.num_beams,
            min_new_tokens=decoding.min_new_tokens,
            max_new_tokens=decoding.max_new_tokens,
            repetition_penalty=decoding.repetition_penalty,
            length_penalty=decoding.length_penalty,
            eos_token_id=list(self.prompt.stops),
            pad_token_id=self.tokenizer.pad_token_id,
            synced_gpus=synced,
            streamer=streamer,
            logits_processor=LogitsProcessorList(
                [ForcedPrefix(self.tokenizer, forced_prefixes)] if forced_prefixes else []
            ),
            # With a cache of fixed size transformers compiles the step on GPUs.
            **({"cache_implementation": "static"} if decoding.compile else {}),
        )
        if len(self.prompt.stops) > 1:  # not all of them need be special tokens of the tokenizer
            stops = torch.tensor(self.prompt.stops, device=written.device)
            written = written.masked_fill(torch.isin(written, stops), self.tokenizer.eos_token_id)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [strip_outline(text) if self.settings.predict_outline else text.strip() for text in texts]

    @torch.no_grad()
    def associations(self, query_vision: VisionOutput, group_B: Tensor, count: int) -> dict[str, "Association"]:
        """Heaviest rows that each query retrieves from each memory in use, by ``MEMORIES``.

        Args:
            query_vision, group_B: as for ``embed_streams``.
            count: most rows per query, heaviest first.
        """
        states, hidden = self.memory_states(query_vision), self.hidden_groups(group_B)
        return {
            name: Association(
                *memory.attribution(states[name], query_group=hidden, top_k=min(count, memory.bank.rows_in_all))
            )
            for name, memory in self.memories.items()
        }

    def report_encoder(self, max_tokens: int) -> ReportTokenizer:
        """Return the tokenizer of reports for ``forward``."""
        settings = self.settings
        return ReportTokenizer(
            self.tokenizer, settings.predict_outline, max_tokens, self.prompt.stops[0], settings.separate_sections
        )

    def context_encoder(self) -> ContextTokenizer | None:
        """Return the tokenizer of contexts; None if the language model reads none."""
        settings = self.settings
        if not settings.context:
            return None
        return ContextTokenizer(self.tokenizer, settings.context, settings.context_tokens)

    def encode_context(self, contexts: Sequence[Context]) -> Tensor | None:
        """Return token ids [B, C] for ``generate``, on the model's device; None if the language model reads none."""
        encode = self.context_encoder()
        return None if encode is None else encode(contexts)[0].to(self.mark_PE.device)

    def prior_encoder(self) -> PriorTokenizer | None:
        """Return the tokenizer of earlier studies; None if the language model reads none."""
        settings = self.settings
        return PriorTokenizer(self.tokenizer, settings.prior, settings.prior_tokens) if settings.prior else None

    def encode_priors(self, priors: Sequence[Prior | None]) -> Tensor | None:
        """Return token ids [B, R] of ``PriorInputs``, on the model's device; None if the language model reads none."""
        encode = self.prior_encoder()
        return None if encode is None else encode(priors).to(self.mark_PE.device)

    @property
    def prior_positions(self) -> int:
        """Number of positions of the films of an earlier study."""
        tokens, queries, _ = self.vision_shape
        return (tokens + queries * self.settings.use_queries) * ("films" in self.settings.prior)

    def saved_parameters(self) -> list[nn.Parameter]:
        """Parameters that ``save_pretrained`` writes and that must be gathered: all but the frozen base weights."""
        named = self.named_parameters()
        return [weight for name, weight in named if weight.requires_grad or not name.startswith("decoder.")]

    def base_fingerprint(self) -> str:
        """Fingerprint of the language model's frozen weights (``decoder.base_fingerprint``)."""
        return base_fingerprint(self.decoder) if self.settings.tuning != "full" else ""

    def save_pretrained(self, folder: Path, base: str | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` (all but the language model) and ``decoder/``.

        Only trained weights of the language model are written: all, a LoRA adapter, or none.

        Args:
            folder: created if missing.
            base: ``base_fingerprint`` if it was computed before (with ZeRO 3 all ranks must take part).
        """
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "model_type": "amrg_report_generator",
            "memory": config_to_dict(self.memory_config),
            "decoder": config_to_dict(self.settings),
            "map_method": self.map_method,
            "base_fingerprint": self.base_fingerprint() if base is None else base,
        }
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        self.stage1.save_pretrained(folder / "stage1")
        save_file({name: value.contiguous() for name, value in self._own_state().items()}, folder / WEIGHTS)
        save_decoder(self.decoder, self.tokenizer, folder / "decoder")

    @classmethod
    def from_pretrained(
        cls, folder: Path, banks: Sequence[AnyBank], zero: Zero3Config = None, base_model: str | None = None
    ) -> Self:
        """Load a saved model with the banks of its training.

        Args:
            folder: written by ``save_pretrained``.
            banks: as for the constructor.
            zero: partitions the language model's weights over the ranks (``amrg.models.zero3``).
            base_model: name or folder of a frozen base model; None: the one of the training.

        Raises:
            UserError: the folder holds no saved model, or the base model or the banks' row length differ.
        """
        try:
            content = json.loads((folder / "config.json").read_text())
            memory = read_config_section(MemoryConfig, content["memory"], "memory")
            settings = read_config_section(DecoderConfig, content["decoder"], "decoder")
            base, map_method = content.get("base_fingerprint", ""), content["map_method"]
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} is not a saved report generator ({type(error).__name__}): run `amrg stage2`"
            ) from None
        stage1 = DiseaseClassifier.from_pretrained(folder / "stage1")
        settings = settings if base_model is None else replace(settings, model=base_model)
        decoder, tokenizer = load_saved_decoder(settings, folder / "decoder", zero)
        if base and base_fingerprint(decoder) != base:
            raise UserError(
                f"{folder} was trained with another base model than what {settings.model} is now: give the folder of "
                "that one with --decoder.model"
            )
        model = cls(stage1, decoder, tokenizer, banks, memory, settings, map_method)
        try:
            model.load_state_dict(weights, strict=False)
        except RuntimeError:
            raise UserError(f"{folder} was trained with other banks (their rows differ in length)") from None
        if model._own_state().keys() != weights.keys():
            raise UserError(f"{folder} was saved by another version of this package: run `amrg stage2` again")
        return model.eval()

    def _own_state(self) -> dict[str, Tensor]:
        return {n: v for n, v in self.state_dict().items() if not n.startswith(("decoder.", "stage1."))}


def _memory(
    config: MemoryConfig, dim: int, bank: AnyBank, sharpness: float | None = None
) -> HopfieldMemory | CrossAttention:
    sizes = dim, bank.rows.shape[1], dim
    if sharpness is not None and dim != bank.rows.shape[1]:
        raise UserError(
            f"the visual bank has rows of {bank.rows.shape[1]} numbers, but the film's regions, which ask it, have "
            f"{dim}: build the banks with this stage 1, or say memory.visual_query queries"
        )
    memory: HopfieldMemory | CrossAttention
    if config.retrieval == "cross_attention":
        memory = CrossAttention(*sizes, heads=config.heads, head_dim=config.head_dim, dropout=config.dropout)
    else:
        memory = HopfieldMemory(
            *sizes,
            heads=config.heads,
            head_dim=config.head_dim,
            beta=config.beta,
            learn_beta=config.learn_beta,
            sharpness=sharpness,
            update_steps=config.update_steps,
            dropout=config.dropout,
        )
    memory.set_bank(bank)
    return memory
