//! Refuses combinations that cannot work, before any work is done. Each line below is one rule: when it is broken, and
//! a message that names the keys and what to try.

use super::{Balance, Config, DataConfig, ModelConfig, OptimizerConfig, RouterConfig, ScoringFunc, Setback};
use super::{MAX_MEMORY_SLOTS, TokenizerConfig, TokenizerKind, TrainConfig};

/// Everything that is wrong with a resolved configuration, in the order of its sections.
pub(super) fn violations(config: &Config) -> Vec<String> {
    let mut rules = Rules::default();
    data(&mut rules, &config.data);
    tokenizer(&mut rules, &config.tokenizer);
    model(&mut rules, &config.model);
    experts(&mut rules, &config.model);
    memory(&mut rules, &config.model);
    router(&mut rules, &config.router, &config.model);
    optimizer(&mut rules, &config.optimizer, config.train.max_steps);
    step_sizes(&mut rules, &config.optimizer, &config.model);
    train(&mut rules, &config.train);
    sizes(&mut rules, config);
    rules.broken
}

#[derive(Default)]
struct Rules {
    broken: Vec<String>,
}

impl Rules {
    fn refuse(&mut self, broken: bool, message: String) {
        if broken {
            self.broken.push(message);
        }
    }

    fn at_least_1(&mut self, key: &str, value: usize) {
        self.refuse(value == 0, format!("{key} = 0 leaves nothing to do; it must be 1 or more"));
    }

    fn positive(&mut self, key: &str, value: f64) {
        let fits = value > 0.0 && value.is_finite();
        self.refuse(!fits, format!("{key} = {value} must be a finite number above 0"));
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        let fits = value >= 0.0 && value.is_finite();
        self.refuse(!fits, format!("{key} = {value} must be a finite number of 0 or more"));
    }

    /// A number above 0 that enters computations in f32, where it must neither vanish nor overflow.
    fn positive_in_f32(&mut self, key: &str, value: f64) {
        let fits = (F32_SMALLEST..=F32_LARGEST).contains(&value);
        self.within(key, value, fits, "a number above 0, from 1.2e-38 to 3.4e38: it is computed with in f32");
    }

    /// As [`Self::positive_in_f32`], or 0.
    fn not_negative_in_f32(&mut self, key: &str, value: f64) {
        let fits = (0.0..=F32_LARGEST).contains(&value);
        self.within(key, value, fits, "0 or more and at most 3.4e38: it is computed with in f32");
    }

    /// `range` says in words what `fits` checks.
    fn within(&mut self, key: &str, value: f64, fits: bool, range: &str) {
        self.refuse(!fits, format!("{key} = {value} must be {range}"));
    }
}

fn data(rules: &mut Rules, data: &DataConfig) {
    rules.refuse(
        data.sources.is_empty(),
        "data.sources is empty: name the text to train on, for example sources = [\"data\"]".into(),
    );
    rules.refuse(
        data.sources.iter().any(|source| source.is_empty()),
        "data.sources holds an empty path; use \".\" for the current directory".into(),
    );
    rules.refuse(
        data.text_column.trim().is_empty(),
        "data.text_column is empty: name the column that holds the text, for example \"text\"".into(),
    );
    let fraction = data.validation_fraction;
    let fits = fraction > 0.0 && fraction <= 0.5;
    rules.within("data.validation_fraction", fraction, fits, "above 0 and at most 0.5, for example 0.1");
}

fn tokenizer(rules: &mut Rules, t: &TokenizerConfig) {
    let kind = match t.kind {
        TokenizerKind::Bpe => "bpe",
        TokenizerKind::Bytes => "bytes",
        TokenizerKind::Chars => "chars",
        TokenizerKind::File => "file",
    };
    let is_file = t.kind == TokenizerKind::File;
    rules.refuse(
        is_file && t.path.is_empty(),
        "tokenizer.kind = \"file\" without tokenizer.path; set path to a tokenizer.json".into(),
    );
    rules.refuse(
        !is_file && !t.path.is_empty(),
        format!("tokenizer.path = {:?} is not read by tokenizer.kind = {kind:?}; set kind = \"file\"", t.path),
    );
    let (is_bpe, size) = (t.kind == TokenizerKind::Bpe, t.vocab_size);
    rules.refuse(
        !is_bpe && size > 0,
        format!("tokenizer.vocab_size = {size} has no meaning with tokenizer.kind = {kind:?}, which fixes it; use 0"),
    );
    rules.refuse(
        is_bpe && (1..257).contains(&size),
        format!("tokenizer.vocab_size = {size} cannot hold the 256 bytes and a special token; use 257 or more, or 0"),
    );
}

fn model(rules: &mut Rules, m: &ModelConfig) {
    rules.at_least_1("model.hidden_size", m.hidden_size);
    rules.at_least_1("model.num_hidden_layers", m.num_hidden_layers);
    rules.at_least_1("model.num_attention_heads", m.num_attention_heads);
    rules.at_least_1("model.max_position_embeddings", m.max_position_embeddings);

    let (width, heads, kv_heads) = (m.hidden_size, m.num_attention_heads, m.num_key_value_heads);
    rules.refuse(
        kv_heads > 0 && heads % kv_heads != 0,
        format!(
            "model.num_attention_heads = {heads} cannot be shared out evenly over model.num_key_value_heads = \
             {kv_heads}; use a divisor of {heads}, or 0 for as many"
        ),
    );
    rules.refuse(
        width > 0 && heads > 0 && m.head_dim == 0,
        format!(
            "model.hidden_size = {width} is not a multiple of model.num_attention_heads = {heads}; change one of \
             them, or set model.head_dim"
        ),
    );
    rules.refuse(
        m.head_dim % 2 == 1,
        format!(
            "model.head_dim = {} is odd, but RoPE rotates pairs of channels; make it even (when it is not set it is \
             model.hidden_size = {width} / model.num_attention_heads = {heads})",
            m.head_dim
        ),
    );
    rules.refuse(
        m.qk_norm_across_heads && !m.qk_norm,
        "model.qk_norm_across_heads = true with model.qk_norm = false has nothing to normalise; set qk_norm = true, or \
         drop it"
            .into(),
    );
    rules.positive_in_f32("model.rope_theta", m.rope_theta);
    let fraction = m.partial_rotary_factor;
    let fits = fraction > 0.0 && fraction <= 1.0;
    rules.within("model.partial_rotary_factor", fraction, fits, "above 0 and at most 1; 1 turns all channels");
    let turned = m.rotary_dim();
    rules.refuse(
        fits && fraction < 1.0 && (turned == 0 || turned % 2 == 1),
        format!(
            "model.partial_rotary_factor = {fraction} of model.head_dim = {} is {turned} channels, but RoPE turns pairs; \
             make it an even number of them, 2 or more",
            m.head_dim
        ),
    );
    rules.positive_in_f32("model.rms_norm_eps", m.rms_norm_eps);
    rules.positive_in_f32("model.initializer_range", m.initializer_range);
    for (key, dropout) in [
        ("model.hidden_dropout", m.hidden_dropout),
        ("model.expert_dropout", m.expert_dropout),
        ("model.attention_dropout", m.attention_dropout),
    ] {
        rules.within(key, dropout, (0.0..1.0).contains(&dropout), "at least 0 and below 1; 0 is none");
    }
}

fn experts(rules: &mut Rules, m: &ModelConfig) {
    let (experts, chosen) = (m.num_experts, m.num_experts_per_tok);
    let (layers, dense_layers) = (m.num_hidden_layers, m.first_k_dense_replace);
    rules.refuse(
        experts > 0 && chosen > experts,
        format!(
            "model.num_experts_per_tok = {chosen} is more than model.num_experts = {experts}; choose at most \
             {experts}, or add experts"
        ),
    );
    rules.refuse(
        experts > 0 && chosen == 0,
        format!(
            "model.num_experts_per_tok = 0 leaves the model.num_experts = {experts} without tokens; choose 1 or \
             more, or set num_experts = 0 for a dense model"
        ),
    );
    rules.refuse(
        experts > 0 && m.moe_intermediate_size == 0,
        format!("model.moe_intermediate_size = 0 with model.num_experts = {experts}; give the experts a width"),
    );
    rules.refuse(
        (experts == 0 || dense_layers > 0) && m.intermediate_size == 0,
        format!(
            "model.intermediate_size = 0, but layers are dense with model.num_experts = {experts} and \
             model.first_k_dense_replace = {dense_layers}; give them a width"
        ),
    );
    rules.refuse(
        dense_layers > layers,
        format!(
            "model.first_k_dense_replace = {dense_layers} is more than model.num_hidden_layers = {layers}; use at \
             most {layers}"
        ),
    );
    rules.refuse(
        m.n_shared_experts > 0 && experts == 0,
        format!(
            "model.n_shared_experts = {} with model.num_experts = 0, a dense model; set n_shared_experts = 0, or add \
             experts",
            m.n_shared_experts
        ),
    );
    rules.refuse(
        m.shared_expert_gate && m.n_shared_experts == 0,
        "model.shared_expert_gate = true with model.n_shared_experts = 0 has nothing to gate; set \
         n_shared_experts = 1, or drop the gate"
            .into(),
    );
}

fn memory(rules: &mut Rules, m: &ModelConfig) {
    let (layers, read) = (m.num_hidden_layers, &m.memory_layers);
    if read.is_empty() {
        return;
    }
    rules.refuse(
        !m.has_fitting_memory_layers(),
        format!(
            "model.memory_layers = {read:?} must be different layers in ascending order, counted from 0, of \
             model.num_hidden_layers = {layers}"
        ),
    );
    if let Some(wanted) = m.bad_memory_ngrams() {
        rules.refuse(true, format!("model.memory_ngrams = {:?} must be {wanted}", m.memory_ngrams));
    }
    rules.refuse(
        m.memory_slots == 0 || m.memory_slots > MAX_MEMORY_SLOTS,
        format!("model.memory_slots = {} must be from 1 to {MAX_MEMORY_SLOTS}", m.memory_slots),
    );
    rules.at_least_1("model.memory_dim", m.memory_dim);
}

fn router(rules: &mut Rules, r: &RouterConfig, m: &ModelConfig) {
    let is_sigmoid = r.scoring_func == ScoringFunc::Sigmoid;
    rules.refuse(
        m.num_experts > 0 && m.num_experts_per_tok == 1 && r.norm_topk_prob,
        "router.norm_topk_prob = true with model.num_experts_per_tok = 1 makes every gate exactly 1, so the router \
         would get no gradient; set norm_topk_prob = false"
            .into(),
    );
    rules.refuse(
        r.noisy_gate && is_sigmoid,
        "router.noisy_gate = true needs router.scoring_func = \"softmax\"; change one of them".into(),
    );
    rules.refuse(
        r.balance == Balance::Bias && !is_sigmoid,
        "router.balance = \"bias\" needs router.scoring_func = \"sigmoid\", whose scores do not compete with each \
         other; change one of them"
            .into(),
    );
    rules.positive_in_f32("router.routed_scaling_factor", r.routed_scaling_factor);
    rules.not_negative_in_f32("router.router_aux_loss_coef", r.router_aux_loss_coef);
    rules.not_negative_in_f32("router.router_z_loss_coef", r.router_z_loss_coef);
    rules.not_negative_in_f32("router.bias_update_rate", r.bias_update_rate);
    rules.not_negative("router.capacity_factor", r.capacity_factor);
}

fn optimizer(rules: &mut Rules, o: &OptimizerConfig, max_steps: usize) {
    rules.positive_in_f32("optimizer.learning_rate", o.learning_rate);
    let fits = (0.0..=1.0).contains(&o.min_lr_ratio);
    rules.within("optimizer.min_lr_ratio", o.min_lr_ratio, fits, "from 0 to 1, a fraction of learning_rate");
    rules.refuse(
        o.warmup_steps > max_steps,
        format!(
            "optimizer.warmup_steps = {} is more than train.max_steps = {max_steps}, so the learning rate would never \
             reach its peak; use about a tenth of max_steps",
            o.warmup_steps
        ),
    );
    let fits = o.decay_fraction > 0.0 && o.decay_fraction <= 1.0;
    rules.within("optimizer.decay_fraction", o.decay_fraction, fits, "above 0 and at most 1, a fraction of the run");
    let betas =
        [("optimizer.beta1", o.beta1), ("optimizer.beta2", o.beta2), ("optimizer.muon_momentum", o.muon_momentum)];
    for (key, beta) in betas {
        // In f32, too: at 1 an average never moves.
        let fits = beta >= 0.0 && (beta as f32) < 1.0;
        rules.within(key, beta, fits, "at least 0 and below 1, by more than the 6e-8 that f32 tells apart");
    }
    rules.positive_in_f32("optimizer.epsilon", o.epsilon);
    rules.not_negative_in_f32("optimizer.weight_decay", o.weight_decay);
    rules.not_negative("optimizer.max_grad_norm", o.max_grad_norm);
    rules.not_negative_in_f32("optimizer.router_lr_multiplier", o.router_lr_multiplier);
    rules.not_negative_in_f32("optimizer.embedding_lr_multiplier", o.embedding_lr_multiplier);
    rules.not_negative_in_f32("optimizer.memory_lr_multiplier", o.memory_lr_multiplier);
}

/// What weights are moved and decayed by must fit f32 as a product, too.
fn step_sizes(rules: &mut Rules, o: &OptimizerConfig, m: &ModelConfig) {
    let mut multipliers =
        vec![("embedding_lr_multiplier", o.embedding_lr_multiplier), ("router_lr_multiplier", o.router_lr_multiplier)];
    if !m.memory_layers.is_empty() {
        multipliers.push(("memory_lr_multiplier", o.memory_lr_multiplier));
    }
    let (rate, decay) = (o.learning_rate, o.weight_decay);
    for (key, multiplier) in multipliers {
        let product = rate * multiplier * decay.max(1.0);
        rules.refuse(
            [rate, multiplier, decay].iter().all(|factor| *factor <= F32_LARGEST) && product > F32_LARGEST,
            format!(
                "optimizer.learning_rate = {rate:e} times optimizer.{key} = {multiplier:e} and optimizer.weight_decay = \
                 {decay:e} comes to {product:e}, which f32 cannot compute with; make one of them smaller"
            ),
        );
    }
}

fn train(rules: &mut Rules, t: &TrainConfig) {
    rules.at_least_1("train.batch_size", t.batch_size);
    rules.at_least_1("train.gradient_accumulation_steps", t.gradient_accumulation_steps);
    rules.at_least_1("train.max_steps", t.max_steps);
    let corruption = t.token_corruption;
    rules.within("train.token_corruption", corruption, (0.0..1.0).contains(&corruption), "at least 0 and below 1");
    rules.at_least_1("train.log_interval", t.log_interval);
    rules.at_least_1("train.eval_interval", t.eval_interval);
    rules.at_least_1("train.checkpoint_interval", t.checkpoint_interval);
    rules.refuse(
        t.keep_checkpoints == 0,
        "train.keep_checkpoints = 0 leaves nothing to resume from; keep 1 or more".into(),
    );
    rules.refuse(
        t.on_bad_numbers == Setback::Warn,
        "train.on_bad_numbers = \"warn\" would spoil every weight; use \"stop\", \"skip\" or \"rewind\"".into(),
    );
    rules.refuse(
        t.spike_window == 1 || t.spike_window > MAX_SPIKE_WINDOW,
        format!("train.spike_window = {} must be 0 or from 2 to {MAX_SPIKE_WINDOW}", t.spike_window),
    );
    rules.positive("train.spike_threshold", t.spike_threshold);
    let fraction = t.recompute_fraction;
    rules.within("train.recompute_fraction", fraction, (0.0..=1.0).contains(&fraction), "from 0 to 1");
}

/// Above 0, f32 has all its digits between these.
const F32_SMALLEST: f64 = f32::MIN_POSITIVE as f64;
const F32_LARGEST: f64 = f32::MAX as f64;
/// The losses of a window are part of every checkpoint.
const MAX_SPIKE_WINDOW: usize = 100_000;
/// The most parameters that this program trains: with gradients and AdamW's two moments, 64 GB in f32.
const MAX_PARAMETERS: f64 = 4e9;
/// The most tensors of a model: names and shapes of twice as many, AdamW's moments, still fit in a safetensors header.
pub(crate) const MAX_TENSORS: usize = 50_000;
/// The most tokens in a micro-batch: their activations alone are gigabytes.
const MAX_BATCH_TOKENS: f64 = (1u64 << 24) as f64;
/// The most tokens in a run: every count of them stays exact in JSON.
const MAX_RUN_TOKENS: f64 = (1u64 << 53) as f64;

/// Sizes that only a typing error asks for. Products are taken in floating point, which cannot overflow here; within
/// these limits the same products fit in integers everywhere else.
fn sizes(rules: &mut Rules, config: &Config) {
    let (m, t) = (&config.model, &config.train);
    let parameters = estimated_parameters(m, config.tokenizer.vocab_size);
    rules.refuse(
        parameters > MAX_PARAMETERS,
        format!(
            "[model] asks for about {:.1} billion parameters ({:.0} GiB in f32), more than {:.0} billion; make \
             model.hidden_size, model.num_hidden_layers, model.num_experts, model.memory_slots or the widths smaller",
            parameters / 1e9,
            parameters * 4.0 / (1u64 << 30) as f64,
            MAX_PARAMETERS / 1e9
        ),
    );
    let tensors = estimated_tensors(m);
    rules.refuse(
        parameters <= MAX_PARAMETERS && tensors > MAX_TENSORS as f64,
        format!(
            "[model] asks for about {tensors:.0} tensors, three for each expert; checkpoints hold {MAX_TENSORS} at most: \
             make model.num_experts or model.num_hidden_layers smaller"
        ),
    );
    let batch_tokens = t.batch_size as f64 * m.max_position_embeddings as f64;
    rules.refuse(
        batch_tokens > MAX_BATCH_TOKENS,
        format!(
            "train.batch_size = {} times model.max_position_embeddings = {} is {batch_tokens} tokens at once, more \
             than {MAX_BATCH_TOKENS}; use a smaller batch and train.gradient_accumulation_steps",
            t.batch_size, m.max_position_embeddings
        ),
    );
    let run_tokens = batch_tokens * t.gradient_accumulation_steps as f64 * t.max_steps as f64;
    rules.refuse(
        run_tokens > MAX_RUN_TOKENS,
        format!(
            "train.max_steps = {} with train.gradient_accumulation_steps = {} would take {run_tokens:.1e} tokens; \
             use fewer steps",
            t.max_steps, t.gradient_accumulation_steps
        ),
    );
}

/// About how many tensors a checkpoint of the model has, at most: each expert has three, each layer ten or so besides.
fn estimated_tensors(m: &ModelConfig) -> f64 {
    m.num_hidden_layers as f64 * (3.0 * (m.num_experts + m.n_shared_experts) as f64 + 16.0)
}

/// About how many parameters the model has; norms are left out, and a vocabulary that is not known yet counts as
/// 4,096, the largest that is chosen automatically.
pub fn estimated_parameters(m: &ModelConfig, vocab_size: usize) -> f64 {
    let width = m.hidden_size as f64;
    let swiglu = |hidden: usize| 3.0 * width * hidden as f64;
    let vocabulary = if vocab_size == 0 { 4096.0 } else { vocab_size as f64 };
    let embeddings = if m.tie_word_embeddings { 1.0 } else { 2.0 };
    let heads = m.num_attention_heads as f64 + m.num_key_value_heads as f64;
    let attention = 2.0 * width * m.head_dim as f64 * heads;
    let moe = (m.num_experts as f64 + m.n_shared_experts as f64) * swiglu(m.moe_intermediate_size)
        + width * m.num_experts as f64;
    let layers = m.num_hidden_layers;
    let dense_layers = if m.num_experts == 0 { layers } else { m.first_k_dense_replace.min(layers) } as f64;
    let moe_layers = layers as f64 - dense_layers;
    // Rows of the tables, and keys and values made of one row each.
    let channels = m.memory_ngrams.len() as f64 * m.memory_dim as f64;
    let memory = channels * (m.memory_slots as f64 + 2.0 * width);
    vocabulary * width * embeddings
        + m.memory_layers.len() as f64 * memory
        + m.num_hidden_layers as f64 * attention
        + dense_layers * swiglu(m.intermediate_size)
        + moe_layers * moe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULTS;

    /// What is wrong with the defaults after `change`.
    fn problems_after(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config: Config = toml::from_str(DEFAULTS).unwrap();
        config.data.sources = vec!["data".into()];
        change(&mut config);
        config.model.resolve();
        violations(&config)
    }

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut Config), message: &str) {
        assert_eq!(problems_after(change), [message]);
    }

    /// Every one of the messages begins with the key.
    #[track_caller]
    fn assert_names(key: &str, change: impl FnOnce(&mut Config)) {
        let problems = problems_after(change);
        assert!(problems.len() == 1 && problems[0].starts_with(&format!("{key} = ")), "{key}: {problems:?}");
    }

    #[test]
    fn the_defaults_lack_nothing_but_a_source() {
        assert_eq!(problems_after(|_| ()), Vec::<String>::new());
        assert_refused(
            |c| c.data.sources.clear(),
            "data.sources is empty: name the text to train on, for example sources = [\"data\"]",
        );
    }

    #[test]
    fn choices_of_experts_that_cannot_be_made_are_refused() {
        assert_refused(
            |c| c.model.num_experts_per_tok = 9,
            "model.num_experts_per_tok = 9 is more than model.num_experts = 8; choose at most 8, or add experts",
        );
        assert_refused(
            |c| c.model.num_experts_per_tok = 0,
            "model.num_experts_per_tok = 0 leaves the model.num_experts = 8 without tokens; choose 1 or more, or set \
             num_experts = 0 for a dense model",
        );
        assert_refused(
            |c| c.model.num_experts_per_tok = 1,
            "router.norm_topk_prob = true with model.num_experts_per_tok = 1 makes every gate exactly 1, so the router \
             would get no gradient; set norm_topk_prob = false",
        );
        assert_names("model.n_shared_experts", |c| (c.model.num_experts, c.model.n_shared_experts) = (0, 1));
        assert_names("model.shared_expert_gate", |c| c.model.shared_expert_gate = true);
        assert_names("model.first_k_dense_replace", |c| c.model.first_k_dense_replace = 5);
        assert_names("model.moe_intermediate_size", |c| c.model.moe_intermediate_size = 0);
        assert_names("model.intermediate_size", |c| (c.model.num_experts, c.model.intermediate_size) = (0, 0));
    }

    #[test]
    fn memories_that_cannot_be_read_are_refused_where_there_are_any() {
        type Change = (&'static str, fn(&mut Config));
        let keys: [Change; 8] = [
            ("model.memory_layers", |c| c.model.memory_layers = vec![0, 4]),
            ("model.memory_layers", |c| c.model.memory_layers = vec![1, 0]),
            ("model.memory_ngrams", |c| c.model.memory_ngrams = vec![]),
            ("model.memory_ngrams", |c| c.model.memory_ngrams = vec![2, 2]),
            ("model.memory_ngrams", |c| c.model.memory_ngrams = vec![1]),
            ("model.memory_slots", |c| c.model.memory_slots = 0),
            ("model.memory_slots", |c| c.model.memory_slots = MAX_MEMORY_SLOTS + 1),
            ("model.memory_dim", |c| c.model.memory_dim = 0),
        ];
        for (key, change) in keys {
            assert_names(key, |c| {
                c.model.memory_layers = vec![1];
                change(c);
            });
        }
        assert_eq!(
            problems_after(|c| (c.model.memory_slots, c.model.memory_ngrams) = (0, vec![])),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_dense_model_needs_no_expert_settings() {
        let dense = |c: &mut Config| {
            c.model.num_experts = 0;
            c.model.num_experts_per_tok = 1;
            c.model.moe_intermediate_size = 0;
        };
        assert_eq!(problems_after(dense), Vec::<String>::new());
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        assert_refused(
            |c| c.model.num_key_value_heads = 3,
            "model.num_attention_heads = 4 cannot be shared out evenly over model.num_key_value_heads = 3; use a \
             divisor of 4, or 0 for as many",
        );
        assert_refused(
            |c| c.model.hidden_size = 130,
            "model.hidden_size = 130 is not a multiple of model.num_attention_heads = 4; change one of them, or set \
             model.head_dim",
        );
        assert_names("model.head_dim", |c| c.model.hidden_size = 132);
        assert_eq!(problems_after(|c| (c.model.hidden_size, c.model.head_dim) = (130, 32)), Vec::<String>::new());
    }

    #[test]
    fn routers_that_contradict_themselves_are_refused() {
        assert_names("router.noisy_gate", |c| {
            c.router.noisy_gate = true;
            c.router.scoring_func = ScoringFunc::Sigmoid;
        });
        assert_refused(
            |c| c.router.balance = Balance::Bias,
            "router.balance = \"bias\" needs router.scoring_func = \"sigmoid\", whose scores do not compete with each \
             other; change one of them",
        );
        assert_names("router.capacity_factor", |c| c.router.capacity_factor = -1.0);
    }

    #[test]
    fn tokenizers_that_contradict_themselves_are_refused() {
        assert_names("tokenizer.kind", |c| c.tokenizer.kind = TokenizerKind::File);
        assert_names("tokenizer.path", |c| c.tokenizer.path = "tokenizer.json".into());
        assert_names("tokenizer.vocab_size", |c| c.tokenizer.vocab_size = 256);
        assert_refused(
            |c| (c.tokenizer.kind, c.tokenizer.vocab_size) = (TokenizerKind::Bytes, 256),
            "tokenizer.vocab_size = 256 has no meaning with tokenizer.kind = \"bytes\", which fixes it; use 0",
        );
    }

    #[test]
    fn zero_sizes_are_refused() {
        assert_refused(|c| c.train.batch_size = 0, "train.batch_size = 0 leaves nothing to do; it must be 1 or more");
        assert_names("model.hidden_size", |c| c.model.hidden_size = 0);
        assert_names("model.num_hidden_layers", |c| c.model.num_hidden_layers = 0);
        assert_names("model.num_attention_heads", |c| c.model.num_attention_heads = 0);
        assert_names("model.max_position_embeddings", |c| c.model.max_position_embeddings = 0);
        assert_names("train.gradient_accumulation_steps", |c| c.train.gradient_accumulation_steps = 0);
        assert_names("train.max_steps", |c| (c.train.max_steps, c.optimizer.warmup_steps) = (0, 0));
        assert_names("train.log_interval", |c| c.train.log_interval = 0);
        assert_names("train.eval_interval", |c| c.train.eval_interval = 0);
        assert_names("train.checkpoint_interval", |c| c.train.checkpoint_interval = 0);
        assert_names("train.keep_checkpoints", |c| c.train.keep_checkpoints = 0);
        assert_names("train.spike_window", |c| c.train.spike_window = 1);
        assert_names("train.on_bad_numbers", |c| c.train.on_bad_numbers = Setback::Warn);
    }

    #[test]
    fn numbers_outside_their_range_are_refused_and_so_is_nan() {
        type Key = (&'static str, fn(&mut Config) -> &mut f64, &'static [f64]);
        let keys: &[Key] = &[
            ("data.validation_fraction", |c| &mut c.data.validation_fraction, &[0.0, 0.51]),
            ("model.rope_theta", |c| &mut c.model.rope_theta, &[0.0]),
            ("model.rms_norm_eps", |c| &mut c.model.rms_norm_eps, &[0.0]),
            ("model.initializer_range", |c| &mut c.model.initializer_range, &[0.0]),
            ("model.hidden_dropout", |c| &mut c.model.hidden_dropout, &[-0.1, 1.0]),
            ("model.expert_dropout", |c| &mut c.model.expert_dropout, &[-0.1, 1.0]),
            ("model.attention_dropout", |c| &mut c.model.attention_dropout, &[-0.1, 1.0]),
            ("router.routed_scaling_factor", |c| &mut c.router.routed_scaling_factor, &[0.0]),
            ("router.router_aux_loss_coef", |c| &mut c.router.router_aux_loss_coef, &[-0.1]),
            ("router.router_z_loss_coef", |c| &mut c.router.router_z_loss_coef, &[-0.1]),
            ("router.bias_update_rate", |c| &mut c.router.bias_update_rate, &[-0.1]),
            ("router.capacity_factor", |c| &mut c.router.capacity_factor, &[-0.1]),
            ("optimizer.learning_rate", |c| &mut c.optimizer.learning_rate, &[0.0, -0.1]),
            ("model.partial_rotary_factor", |c| &mut c.model.partial_rotary_factor, &[0.0, 0.1, 1.1]),
            ("optimizer.min_lr_ratio", |c| &mut c.optimizer.min_lr_ratio, &[-0.1, 1.1]),
            ("optimizer.decay_fraction", |c| &mut c.optimizer.decay_fraction, &[0.0, 1.1]),
            ("optimizer.beta1", |c| &mut c.optimizer.beta1, &[-0.1, 1.0]),
            ("optimizer.beta2", |c| &mut c.optimizer.beta2, &[-0.1, 1.0]),
            ("optimizer.epsilon", |c| &mut c.optimizer.epsilon, &[0.0]),
            ("optimizer.weight_decay", |c| &mut c.optimizer.weight_decay, &[-0.1]),
            ("optimizer.max_grad_norm", |c| &mut c.optimizer.max_grad_norm, &[-0.1]),
            ("optimizer.router_lr_multiplier", |c| &mut c.optimizer.router_lr_multiplier, &[-0.1]),
            ("optimizer.memory_lr_multiplier", |c| &mut c.optimizer.memory_lr_multiplier, &[-0.1]),
            ("optimizer.embedding_lr_multiplier", |c| &mut c.optimizer.embedding_lr_multiplier, &[-0.1]),
            ("optimizer.muon_momentum", |c| &mut c.optimizer.muon_momentum, &[-0.1, 1.0]),
            ("train.token_corruption", |c| &mut c.train.token_corruption, &[-0.1, 1.0]),
            ("train.spike_threshold", |c| &mut c.train.spike_threshold, &[0.0, -1.0]),
            ("train.recompute_fraction", |c| &mut c.train.recompute_fraction, &[-0.1, 1.1]),
        ];
        for (key, field, wrong) in keys {
            for &value in wrong.iter().chain(&[f64::NAN, f64::INFINITY]) {
                assert_names(key, |c| *field(c) = value);
            }
        }
    }

    #[test]
    fn numbers_that_vanish_or_overflow_in_f32_are_refused() {
        type Key = (&'static str, fn(&mut Config) -> &mut f64, f64);
        let keys: &[Key] = &[
            ("model.rope_theta", |c| &mut c.model.rope_theta, 1e-300),
            ("model.rms_norm_eps", |c| &mut c.model.rms_norm_eps, 1e-50),
            ("model.initializer_range", |c| &mut c.model.initializer_range, 1e-46),
            ("router.routed_scaling_factor", |c| &mut c.router.routed_scaling_factor, 1e-46),
            ("router.router_aux_loss_coef", |c| &mut c.router.router_aux_loss_coef, 1e39),
            ("router.router_z_loss_coef", |c| &mut c.router.router_z_loss_coef, 1e39),
            ("router.bias_update_rate", |c| &mut c.router.bias_update_rate, 1e39),
            ("optimizer.learning_rate", |c| &mut c.optimizer.learning_rate, 1e-46),
            ("optimizer.epsilon", |c| &mut c.optimizer.epsilon, 1e-46),
            ("optimizer.weight_decay", |c| &mut c.optimizer.weight_decay, 1e39),
            ("optimizer.router_lr_multiplier", |c| &mut c.optimizer.router_lr_multiplier, 1e39),
            ("optimizer.memory_lr_multiplier", |c| &mut c.optimizer.memory_lr_multiplier, 1e39),
            ("optimizer.embedding_lr_multiplier", |c| &mut c.optimizer.embedding_lr_multiplier, 1e39),
            ("optimizer.beta1", |c| &mut c.optimizer.beta1, 1.0 - 1e-9),
            ("optimizer.beta2", |c| &mut c.optimizer.beta2, 1.0 - 1e-9),
            ("optimizer.muon_momentum", |c| &mut c.optimizer.muon_momentum, 1.0 - 1e-9),
        ];
        for (key, field, wrong) in keys {
            for value in [*wrong, 1e300] {
                assert_names(key, |c| *field(c) = value);
            }
        }
        let problems = problems_after(|c| {
            (c.optimizer.learning_rate, c.optimizer.embedding_lr_multiplier, c.optimizer.weight_decay) =
                (1e30, 1e9, 1.0);
        });
        assert!(problems.len() == 1 && problems[0].contains("embedding_lr_multiplier = 1"), "{problems:?}");
        let at_the_ends = |c: &mut Config| (c.optimizer.epsilon, c.router.bias_update_rate) = (2e-38, 3e38);
        assert_eq!(problems_after(at_the_ends), Vec::<String>::new());
    }

    #[test]
    fn a_warmup_longer_than_the_run_is_refused() {
        assert_refused(
            |c| c.train.max_steps = 40,
            "optimizer.warmup_steps = 50 is more than train.max_steps = 40, so the learning rate would never reach its \
             peak; use about a tenth of max_steps",
        );
    }

    #[test]
    fn absurd_sizes_are_refused_with_what_they_come_to() {
        assert_refused(
            |c| (c.model.hidden_size, c.model.num_experts) = (4096, 1024),
            "[model] asks for about 9.2 billion parameters (34 GiB in f32), more than 4 billion; make \
             model.hidden_size, model.num_hidden_layers, model.num_experts, model.memory_slots or the widths smaller",
        );
        // Few parameters in more tensors than a checkpoint's header can name.
        assert_refused(
            |c| {
                c.model.num_hidden_layers = 32;
                (c.model.hidden_size, c.model.head_dim, c.model.num_experts) = (8, 2, 1024);
                c.model.moe_intermediate_size = 4;
            },
            "[model] asks for about 98816 tensors, three for each expert; checkpoints hold 50000 at most: make \
             model.num_experts or model.num_hidden_layers smaller",
        );
        let problems = problems_after(|c| {
            c.model.hidden_size = usize::MAX / 8 * 8;
            c.model.num_experts = usize::MAX;
            c.model.num_hidden_layers = usize::MAX;
        });
        assert!(problems.len() == 1 && problems[0].starts_with("[model] asks for"), "{problems:?}");
        assert_names("train.max_steps", |c| c.train.max_steps = usize::MAX);
        let problems = problems_after(|c| c.train.batch_size = usize::MAX);
        assert!(problems[0].starts_with("train.batch_size = "), "{problems:?}");
    }

    #[test]
    fn all_violations_are_reported_together() {
        let mut config: Config = toml::from_str(DEFAULTS).unwrap();
        config.model.resolve();
        config.train.max_steps = 0;
        config.model.num_experts_per_tok = 9;

        let problems = violations(&config);

        let keys: Vec<_> = problems.iter().filter_map(|problem| problem.split(' ').next()).collect();
        assert_eq!(keys, ["data.sources", "model.num_experts_per_tok", "optimizer.warmup_steps", "train.max_steps"]);
    }
}
