"""Tool configs as the world sends them: whole catalogue entries, and the payload that each must give.

Inputs of the named models as their public pages document them; `input` is what the run was started with
beside the tool, `schema` what the provider would tell of the model, where it tells.
"""

from dataclasses import dataclass, field
from typing import Any

FOX = "a red fox"
PNG, PNG2, PNG3 = "https://files.example/a.png", "https://files.example/b.jpg", "https://files.example/c.webp"
MP3, MP4, PDF = "https://files.example/a.mp3", "https://files.example/a.mp4", "https://files.example/a.pdf"
BARE = "https://files.example/download/17"
S = "https://samples.example/"  # where every sample of content lies

URI = {"type": "string", "format": "uri"}
TEXT = {"type": "string"}
INT = {"type": "integer"}
NUMBER = {"type": "number"}
BOOL = {"type": "boolean"}


def obj(required: list[str], /, **parts: Any) -> dict[str, Any]:
    return {"type": "object", "title": "Input", "required": required, "properties": parts}


def enum(*values: Any, **more: Any) -> dict[str, Any]:
    return {"enum": list(values), **more}


def files(*urls: str) -> dict[str, Any]:
    return {"attachments": [{"url": url} for url in urls]}


def said(*texts: str) -> dict[str, Any]:
    return {"conversation": [{"role": "user", "content": text} for text in texts]}


@dataclass(frozen=True)
class Config:
    """`tool` is the whole `agent_tool_config`; `expected` the payload, `absent` what is asked for."""

    tool: dict[str, Any]
    expected: dict[str, Any]
    input: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    absent: tuple[str, ...] = ()


def replicate(name: str, example: Any = None, **more: Any) -> dict[str, Any]:
    """A catalogue entry, nested under `data`, with what else such entries hold."""
    data: dict[str, Any] = {
        "name": name,
        "description": "sample text of the catalogue",
        "latest_version": "4f9",
        **more,
    }
    return {"replicate-agent-tool": {"data": data if example is None else {**data, "example_input": example}}}


def flat(tool: str, **config: Any) -> dict[str, Any]:
    return {tool: config}


CONFIGS: dict[str, Config] = {
    # -- pictures --
    "flux-schnell": Config(
        replicate("black-forest-labs/flux-schnell", {"prompt": "black forest cake", "num_outputs": 1, "go_fast": True,
            "aspect_ratio": "1:1", "output_format": "webp", "output_quality": 80, "num_inference_steps": 4}),
        {"prompt": FOX, "num_outputs": 1, "go_fast": True, "aspect_ratio": "1:1", "output_format": "webp",
            "output_quality": 80, "num_inference_steps": 4},
    ),
    "flux-schnell by schema alone": Config(
        replicate("black-forest-labs/flux-schnell"),
        {"prompt": FOX, "aspect_ratio": "1:1", "num_outputs": 1, "num_inference_steps": 4, "go_fast": True,
            "megapixels": "1"},
        schema={"type": "object", "title": "Input", "required": ["prompt"],
            "components": {"ratio": {"type": "string", "enum": ["1:1", "16:9", "21:9"]}},
            "properties": {"prompt": {**TEXT, "x-order": 0, "description": "Prompt for generated image"},
                "aspect_ratio": {"allOf": [{"$ref": "#/components/ratio"}], "default": "1:1"},
                "num_outputs": {**INT, "minimum": 1, "maximum": 4, "default": 1},
                "num_inference_steps": {**INT, "maximum": 4, "minimum": 1, "default": 4}, "seed": INT,
                "go_fast": {**BOOL, "default": True}, "megapixels": enum("1", "0.25", default="1")}},
    ),
    "flux-dev image to image": Config(
        replicate("black-forest-labs/flux-dev", {"prompt": "x", "image": S + "in.png", "prompt_strength": 0.8,
            "guidance": 3.5, "disable_safety_checker": False}),
        {"prompt": FOX, "image": PNG, "prompt_strength": 0.8, "guidance": 3.5, "disable_safety_checker": False},
        files(PNG),
    ),
    "flux-1.1-pro": Config(
        replicate("black-forest-labs/flux-1.1-pro", {"prompt": "x", "prompt_upsampling": True, "width": 1024,
            "height": 768, "image_prompt": S + "redux.png", "safety_tolerance": 2}),
        {"prompt": FOX, "prompt_upsampling": True, "width": 1024, "height": 768, "safety_tolerance": 2},
        schema=obj(["prompt"], prompt=TEXT, prompt_upsampling=BOOL, width=INT, height=INT, image_prompt=URI,
            safety_tolerance=INT),
    ),
    "flux-kontext-pro": Config(
        replicate("black-forest-labs/flux-kontext-pro", {"prompt": "Make this a 90s cartoon",
            "input_image": S + "cat.png",
            "aspect_ratio": "match_input_image", "output_format": "jpg", "prompt_upsampling": False}),
        {"prompt": FOX, "input_image": PNG, "aspect_ratio": "match_input_image", "output_format": "jpg",
            "prompt_upsampling": False},
        {"prompt": f"{FOX}\n---BEGIN_ATTACHMENTS---\n{PNG}\n---END_ATTACHMENTS---"},
    ),
    "sdxl": Config(
        replicate("stability-ai/sdxl", {"prompt": "An astronaut riding a rainbow unicorn", "negative_prompt": "ugly",
            "width": 768, "height": 768, "refine": "expert_ensemble_refiner", "scheduler": "K_EULER", "lora_scale": 0.6,
            "num_outputs": 1, "guidance_scale": 7.5, "apply_watermark": False, "high_noise_frac": 0.8,
            "prompt_strength": 0.8, "num_inference_steps": 25}),
        {"prompt": FOX, "negative_prompt": "", "width": 768, "height": 768, "refine": "expert_ensemble_refiner",
            "scheduler": "K_EULER", "lora_scale": 0.6, "num_outputs": 1, "guidance_scale": 7.5,
            "apply_watermark": False, "high_noise_frac": 0.8, "prompt_strength": 0.8, "num_inference_steps": 25},
    ),
    "sdxl inpainting": Config(
        replicate("stability-ai/sdxl", {"prompt": "x", "mask": S + "mask.png", "image": S + "dog.png",
            "replicate_weights": S + "weights.tar", "scheduler": "DDIM"}),
        {"prompt": FOX, "image": PNG, "scheduler": "DDIM"},
        files(PNG),
    ),
    "stable-diffusion-3.5": Config(
        replicate("stability-ai/stable-diffusion-3.5-large", {"prompt": "x", "cfg": 4.5, "steps": 40, "seed": None,
            "aspect_ratio": "1:1"}),
        {"prompt": FOX, "cfg": 4.5, "steps": 40, "seed": 42, "aspect_ratio": "16:9"},
        said("seed: 42", "aspect ratio: 16:9, please"),
        schema=obj(["prompt"], prompt=TEXT, cfg=NUMBER, steps=INT, seed={"anyOf": [INT, {"type": "null"}]},
            aspect_ratio=enum("1:1", "16:9")),
    ),
    "ideogram-v3": Config(
        replicate("ideogram-ai/ideogram-v3-turbo", {"prompt": "x", "resolution": "None", "style_type": "None",
            "magic_prompt_option": "Auto", "style_reference_images": [S + "style.png"]}),
        {"prompt": FOX, "resolution": "None", "style_type": "None", "magic_prompt_option": "Auto",
            "style_reference_images": []},
    ),
    "recraft-v3": Config(
        replicate("recraft-ai/recraft-v3", {"size": "1365x1024", "style": "any", "prompt": "a wildlife photograph"}),
        {"size": "1365x1024", "style": "any", "prompt": FOX},
    ),
    "nano-banana": Config(
        replicate("google/nano-banana", {"prompt": "Make the sheets in the style of the logo",
            "image_input": [S + "logo.png", S + "sheets.png"], "output_format": "jpg",
                "aspect_ratio": "match_input_image"}),
        {"prompt": FOX, "image_input": [PNG, PNG2, PNG3], "output_format": "jpg", "aspect_ratio": "match_input_image"},
        files(PNG, PNG2, PNG3),
    ),
    "nano-banana without a picture": Config(
        replicate("google/nano-banana", {"prompt": "x", "image_input": [S + "logo.png"], "output_format": "jpg"}),
        {"prompt": FOX, "image_input": [], "output_format": "jpg"},
    ),
    "seedream-4": Config(
        replicate("bytedance/seedream-4", {"size": "2K", "width": 2048, "height": 2048, "prompt": "x", "max_images": 1,
            "image_input": [], "sequential_image_generation": "disabled"}),
        {"size": "2K", "width": 2048, "height": 2048, "prompt": FOX, "max_images": 4,
            "image_input": [PNG], "sequential_image_generation": "disabled"},
        {**files(PNG), **said("max_images = 4")},
    ),
    "qwen-image-edit": Config(
        replicate("qwen/qwen-image-edit", {"image": S + "old.png", "prompt": "x", "go_fast": True,
            "output_quality": 95}),
        {"prompt": FOX, "go_fast": True, "output_quality": 95},
        schema=obj(["image", "prompt"], image=URI, prompt=TEXT, go_fast=BOOL, output_quality=INT),
        absent=("image",),
    ),
    "instruct-pix2pix": Config(
        replicate("timothybrooks/instruct-pix2pix", {"image": S + "david.png", "prompt": "turn him into a cyborg",
            "scheduler": "K_EULER_ANCESTRAL", "image_guidance_scale": 1.5, "num_outputs": 1}),
        {"image": PNG, "prompt": FOX, "scheduler": "K_EULER_ANCESTRAL", "image_guidance_scale": 1.5, "num_outputs": 1},
        files(PNG),
    ),
    "controlnet": Config(
        replicate("jagilley/controlnet-scribble", {"image": S + "scribble.png", "prompt": "x", "num_samples": "1",
            "image_resolution": "512", "ddim_steps": 20, "scale": 9, "a_prompt": "best quality", "n_prompt": "lowres"}),
        {"image": PNG, "prompt": FOX, "num_samples": "1", "image_resolution": "512", "ddim_steps": 20, "scale": 9,
            "n_prompt": ""},
        files(PNG),
    ),
    "instant-id": Config(
        replicate("zsxkib/instant-id", {"image": S + "face.png", "pose_image": S + "pose.png", "prompt": "x",
            "negative_prompt": "(lowres)", "ip_adapter_scale": 0.8, "enable_lcm": False,
                "sdxl_weights": "protovision"}),
        {"image": PNG, "prompt": FOX, "negative_prompt": "", "ip_adapter_scale": 0.8, "enable_lcm": False,
            "sdxl_weights": "protovision"},
        files(PNG),
    ),
    "photomaker": Config(
        replicate("tencentarc/photomaker", {"prompt": "a man img", "num_steps": 20,
            "style_name": "Photographic (Default)",
            "input_image": S + "1.png", "input_image2": S + "2.png", "style_strength_ratio": 20}),
        {"prompt": FOX, "num_steps": 20, "style_name": "Photographic (Default)", "input_image": PNG,
            "style_strength_ratio": 20},
        files(PNG),
    ),
    "face swap": Config(
        replicate("cdingram/face-swap", {"swap_image": S + "s.png", "input_image": S + "i.png"}),
        {"swap_image": PNG, "input_image": PNG2},
        files(PNG, PNG2),
        schema=obj(["swap_image", "input_image"], swap_image=URI, input_image=URI),
    ),
    "idm-vton": Config(
        replicate("cuuupid/idm-vton", {"human_img": S + "h.png", "garm_img": S + "g.png", "category": "upper_body",
            "crop": False, "seed": 42, "steps": 30}),
        {"human_img": PNG, "garm_img": PNG2, "category": "upper_body", "crop": False, "seed": 42, "steps": 30},
        files(PNG, PNG2),
        schema=obj(["human_img", "garm_img"], human_img=URI, garm_img=URI, category=enum("upper_body", "dresses"),
            crop=BOOL, seed=INT, steps=INT),
    ),
    # -- pictures without a prompt --
    "real-esrgan": Config(
        replicate("nightmareai/real-esrgan", {"image": S + "small.png", "scale": 2, "face_enhance": False}),
        {"image": PNG, "scale": 4, "face_enhance": True},
        {"prompt": f"enlarge {PNG}.", **said("scale: 4, face enhance: yes")},
        schema=obj(["image"], image=URI, scale={**NUMBER, "default": 4, "maximum": 10}, face_enhance=BOOL),
    ),
    "gfpgan": Config(
        replicate("tencentarc/gfpgan", {"img": S + "old.png", "scale": 2, "version": "v1.4"}),
        {"img": PNG, "scale": 2, "version": "v1.4"},
        files(PNG),
        schema=obj(["img"], img=URI, scale=NUMBER, version=enum("v1.3", "v1.4")),
    ),
    "rembg": Config(
        replicate("cjwbw/rembg"),
        {"image": BARE},
        {"document_url": BARE},
        schema=obj(["image"], image=URI),
    ),
    "codeformer": Config(
        replicate("sczhou/codeformer", {"image": S + "i.png", "upscale": 2, "face_upsample": True,
            "background_enhance": True, "codeformer_fidelity": 0.1}),
        {"image": PNG, "upscale": 2, "face_upsample": True, "background_enhance": True, "codeformer_fidelity": 0.1},
        {"conversation": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
        schema=obj(["image"], image=URI, upscale=NUMBER, face_upsample=BOOL, background_enhance=BOOL,
            codeformer_fidelity=NUMBER),
    ),
    "clarity-upscaler": Config(
        replicate("philz1337x/clarity-upscaler", {"image": S + "i.png", "prompt": "masterpiece", "dynamic": 6,
            "negative_prompt": "(worst quality)", "scale_factor": 2, "creativity": 0.35, "handfix": "disabled",
            "lora_links": "", "sd_model": "juggernaut"}),
        {"image": PNG, "prompt": FOX, "dynamic": 6, "negative_prompt": "", "scale_factor": 2, "creativity": 0.35,
            "handfix": "disabled", "lora_links": "", "sd_model": "juggernaut"},
        files(PNG),
    ),
    "trellis": Config(
        replicate("firtoz/trellis", {"images": [S + "a.png"], "texture_size": 1024, "mesh_simplify": 0.95,
            "generate_model": True}),
        {"images": [PNG, PNG2], "texture_size": 1024, "mesh_simplify": 0.95, "generate_model": True},
        files(PNG, PNG2),
        schema=obj(["images"], images={"type": "array", "items": URI}, texture_size=INT, mesh_simplify=NUMBER,
            generate_model=BOOL),
    ),
    # -- video --
    "wan image to video": Config(
        replicate("wan-video/wan-2.2-i2v-fast", {"image": S + "frame.png", "prompt": "x", "num_frames": 81,
            "resolution": "480p", "frames_per_second": 16, "go_fast": True, "sample_shift": 12,
                "last_image": S + "z.png"}),
        {"image": PNG, "prompt": FOX, "num_frames": 81, "resolution": "480p", "frames_per_second": 16,
            "go_fast": True, "sample_shift": 12},
        files(PNG),
        schema=obj(["image", "prompt"], image=URI, prompt=TEXT, num_frames={**INT, "minimum": 81, "maximum": 121},
            resolution=enum("480p", "720p"), frames_per_second=INT, go_fast=BOOL, sample_shift=NUMBER, last_image=URI),
    ),
    "wan image to video without an image": Config(
        replicate("wan-video/wan-2.2-i2v-fast", {"image": S + "frame.png", "prompt": "x", "num_frames": 81}),
        {"prompt": FOX, "num_frames": 81},
        schema=obj(["image", "prompt"], image=URI, prompt=TEXT, num_frames=INT),
        absent=("image",),
    ),
    "kling": Config(
        replicate("kwaivgi/kling-v2.1", {"mode": "standard", "prompt": "x", "duration": 5, "start_image": S + "s.png",
            "negative_prompt": ""}),
        {"mode": "pro", "prompt": FOX, "duration": 5, "start_image": PNG, "negative_prompt": ""},
        {**files(PNG), **said("mode=pro")},
        schema=obj(["prompt"], mode=enum("standard", "pro"), prompt=TEXT, duration=enum(5, 10), start_image=URI,
            end_image=URI, negative_prompt=TEXT),
    ),
    "minimax video": Config(
        replicate("minimax/video-01", {"prompt": "x", "prompt_optimizer": True, "first_frame_image": S + "f.png",
            "subject_reference": S + "s.png"}),
        {"prompt": FOX, "prompt_optimizer": True, "first_frame_image": PNG},
        files(PNG),
    ),
    "sadtalker": Config(
        replicate("cjwbw/sadtalker", {"source_image": S + "art.png", "driven_audio": S + "japanese.wav", "still": True,
            "enhancer": "gfpgan", "preprocess": "full", "ref_eyeblink": S + "blink.mp4", "pose_style": 0}),
        {"source_image": PNG, "driven_audio": MP3, "still": True, "enhancer": "gfpgan", "preprocess": "full",
            "pose_style": 0},
        files(MP3, PNG),
        schema=obj(["source_image", "driven_audio"], source_image=URI, driven_audio=URI, still=BOOL,
            enhancer=enum("gfpgan", "RestoreFormer"), preprocess=enum("crop", "full"), ref_eyeblink=URI,
                pose_style=INT),
    ),
    "sadtalker without a voice": Config(
        replicate("cjwbw/sadtalker", {"source_image": S + "art.png", "driven_audio": S + "japanese.wav"}),
        {"source_image": PNG},
        files(PNG),
        schema=obj(["source_image", "driven_audio"], source_image=URI, driven_audio=URI),
        absent=("driven_audio",),
    ),
    "wav2lip": Config(
        replicate("devxpy/cog-wav2lip", {"face": S + "face.mp4", "audio": S + "a.wav", "pads": "0 10 0 0",
            "smooth": True}),
        {"face": MP4, "audio": MP3, "pads": "0 10 0 0", "smooth": True},
        files(MP4, MP3),
        schema=obj(["face", "audio"], face=URI, audio=URI, pads=TEXT, smooth=BOOL),
    ),
    "live-portrait": Config(
        replicate("fofr/live-portrait", {"face_image": S + "f.png", "driving_video": S + "d.mp4",
            "live_portrait_dsize": 512}),
        {"face_image": PNG, "driving_video": MP4, "live_portrait_dsize": 512},
        {"prompt": f"animate {PNG} like {MP4}"},
        schema=obj(["face_image", "driving_video"], face_image=URI, driving_video=URI, live_portrait_dsize=INT),
    ),
    # -- sound --
    "whisper": Config(
        replicate("openai/whisper", {"audio": S + "gettysburg.wav", "model": "large-v3", "translate": False,
            "temperature": 0, "transcription": "plain text", "suppress_tokens": "-1", "language": "auto"}),
        {"audio": MP3, "model": "large-v3", "translate": True, "temperature": 0, "transcription": "srt",
            "suppress_tokens": "-1", "language": "auto"},
        {**files(MP3), **said("transcription: srt\ntranslate: yes")},
        schema=obj(["audio"], audio=URI, model=enum("large-v3"), translate=BOOL, temperature=NUMBER,
            transcription=enum("plain text", "srt", "vtt"), suppress_tokens=TEXT, language=TEXT),
    ),
    "whisperx": Config(
        replicate("victor-upmeet/whisperx", {"audio_file": S + "a.mp3", "batch_size": 64,
            "initial_prompt": "sample words",
            "align_output": False, "huggingface_access_token": None}),
        {"audio_file": MP3, "batch_size": 64, "align_output": False, "huggingface_access_token": None},
        files(MP3),
        schema=obj(["audio_file"], audio_file=URI, batch_size=INT, initial_prompt=TEXT, align_output=BOOL,
            huggingface_access_token={}),
    ),
    "musicgen": Config(
        replicate("meta/musicgen", {"prompt": "Edo25 major g melodies", "duration": 8, "model_version": "stereo-large",
            "input_audio": S + "melody.mp3", "output_format": "mp3", "normalization_strategy": "peak", "top_k": 250,
            "top_p": 0}),
        {"prompt": FOX, "duration": 30, "model_version": "stereo-large", "output_format": "mp3",
            "normalization_strategy": "peak", "top_k": 50, "top_p": 0},
        said("duration: 30 seconds\ntop k: 50"),
    ),
    "riffusion": Config(
        replicate("riffusion/riffusion", {"prompt_a": "funky synth solo", "prompt_b": "90's rap", "alpha": 0.5,
            "denoising": 0.75, "seed_image_id": "vibes"}),
        {"prompt_a": FOX, "alpha": 0.5, "denoising": 0.75, "seed_image_id": "vibes"},
    ),
    "kokoro": Config(
        replicate("jaaari/kokoro-82m", {"text": "Hi! I'm Kokoro, a text-to-speech voice", "speed": 1,
            "voice": "af_nicole"}),
        {"text": FOX, "speed": 1, "voice": "af_bella"},
        said("voice: af_bella"),
    ),
    "xtts": Config(
        replicate("lucataco/xtts-v2", {"text": "Hi there", "speaker": S + "male.wav", "language": "en",
            "cleanup_voice": False}),
        {"text": FOX, "speaker": MP3, "language": "en", "cleanup_voice": False},
        files(MP3),
        schema=obj(["speaker"], text=TEXT, speaker=URI, language=enum("en", "de"), cleanup_voice=BOOL),
    ),
    "f5-tts": Config(
        replicate("x-lance/f5-tts", {"gen_text": "captain teemo", "ref_text": "never underestimate",
            "ref_audio": S + "r.wav",
            "remove_silence": True}),
        {"gen_text": FOX, "ref_audio": MP3, "remove_silence": True},
        files(MP3),
        schema=obj(["gen_text", "ref_audio"], gen_text=TEXT, ref_text=TEXT, ref_audio=URI, remove_silence=BOOL),
    ),
    "bark": Config(
        replicate("suno-ai/bark", {"prompt": "Hello, my name is Suno.", "text_temp": 0.7, "waveform_temp": 0.7,
            "history_prompt": "announcer", "output_full": False}),
        {"prompt": FOX, "text_temp": 0.7, "waveform_temp": 0.7, "history_prompt": "announcer", "output_full": False},
        schema=obj(["prompt"], prompt=TEXT, text_temp=NUMBER, waveform_temp=NUMBER,
            history_prompt=enum("announcer", "en_speaker_0"), output_full=BOOL),
    ),
    # -- language --
    "llama": Config(
        replicate("meta/meta-llama-3-70b-instruct", {"prompt": "Work through this problem", "max_tokens": 512,
            "system_prompt": "You are a helpful assistant", "top_k": 0, "top_p": 0.9, "temperature": 0.6,
            "prompt_template": "{system_prompt} {prompt}", "stop_sequences": "<|end_of_text|>",
                "presence_penalty": 1.15}),
        {"prompt": FOX, "max_tokens": 512, "system_prompt": "You are a helpful assistant", "top_k": 0, "top_p": 0.9,
            "temperature": 0.2, "prompt_template": "{system_prompt} {prompt}", "stop_sequences": "<|end_of_text|>",
            "presence_penalty": 1.15},
        said("temperature=0.2"),
    ),
    "llava": Config(
        replicate("yorickvp/llava-13b", {"image": S + "view.jpg", "prompt": "Are you allowed to swim here?", "top_p": 1,
            "max_tokens": 1024, "temperature": 0.2, "history": ["sample turn"]}),
        {"image": PNG, "prompt": FOX, "top_p": 1, "max_tokens": 1024, "temperature": 0.2, "history": []},
        files(PNG),
    ),
    "blip": Config(
        replicate("salesforce/blip", {"image": S + "d.png", "task": "image_captioning"}),
        {"image": PNG, "task": "image_captioning", "question": FOX},
        files(PNG),
        schema=obj(["image"], image=URI, task=enum("image_captioning", "visual_question_answering"), question=TEXT,
            caption=TEXT),
    ),
    "gpt on replicate": Config(
        replicate("openai/gpt-4o", {"prompt": "x", "messages": [{"role": "user", "content": "sample"}], "top_p": 1,
            "image_input": [S + "i.png"], "system_prompt": "Be brief.", "max_completion_tokens": 4096}),
        {"prompt": FOX, "messages": [], "top_p": 1, "image_input": [PNG], "system_prompt": "Be brief.",
            "max_completion_tokens": 4096},
        files(PNG),
    ),
    "openai chat": Config(
        {"openai-agent-tool": {"data": {"model": "gpt-4o-mini", "system": "Be brief.",
            "example_input": {"temperature": 0.7, "max_tokens": 512, "stop": ["END"], "top_p": None}}}},
        {"temperature": 0.7, "max_tokens": 256, "stop": [], "top_p": None, "prompt": FOX},
        said("max_tokens: 256"),
    ),
    "openai chat, flat": Config(
        flat("openai-agent-tool", model="llama3", example_input={"prompt": "Say hi", "seed": 3}),
        {"prompt": FOX, "seed": 3},
    ),
    "openai chat without an example": Config(flat("openai-agent-tool", model="gpt-4o-mini"), {"prompt": FOX}),
    # -- any endpoint --
    "http, flat, no example": Config(flat("http-agent-tool", url="https://api.example/predict"), {"prompt": FOX}),
    "http, empty data, config beside it": Config(
        {"http-agent-tool": {"data": {}, "url": "https://api.example/x", "example_input": {"q": "sample",
            "lang": "en"}}},
        {"q": FOX, "lang": "en"},
    ),
    "http, data wins over what is beside it": Config(
        {"http-agent-tool": {"data": {"url": "https://api.example/x", "example_input": {"text": "sample", "n": 2}},
            "example_input": {"prompt": "not this one"}}},
        {"text": FOX, "n": 2},
    ),
    "http, wrapped request": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={
            "input": {"prompt": "sample", "image_url": S + "i.png", "steps": 4, "tags": ["sample"]},
                "priority": "low"}),
        {"input": {"prompt": FOX, "image_url": PNG, "steps": 8, "tags": []}, "priority": "low"},
        {**files(PNG), **said("steps: 8")},
    ),
    "http, wrapped request with a schema": Config(
        flat("http-agent-tool", url="https://api.example/v1"),
        {"input": {"text": FOX, "voice": "low"}, "webhook_events": []},
        schema=obj(["input"], input=obj(["text", "audio"], text=TEXT, audio=URI, voice={**TEXT, "default": "low"}),
            webhook_events={"type": "array", "default": []}),
        absent=("input",),
    ),
    "http, chat completions": Config(
        flat("http-agent-tool", url="https://llm.example/v1/chat/completions", example_input={"model": "mistral-small",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "sample"}], "stream": False}),
        {"messages": [{"role": "user", "content": FOX}], "model": "mistral-small", "stream": False},
    ),
    "http, settings in objects": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"prompt": "sample",
            "options": {"sampler": {"name": "euler", "sigmas": [1, 2]}, "mask": S + "m.png", "note": None}}),
        {"prompt": FOX, "options": {"sampler": {"name": "euler", "sigmas": []}, "note": None}},
    ),
    "http, camel case": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"inputText": "sample", "sourceImageUrl":
            S + "i.png", "negativePrompt": "ugly", "maxTokens": 50, "outputFormat": "png"}),
        {"inputText": FOX, "sourceImageUrl": PNG, "negativePrompt": "", "maxTokens": 99, "outputFormat": "png"},
        {**files(PNG), **said("maxTokens: 99")},
    ),
    "http, odd names": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"q": "sample", "42": True, "": "empty",
            "x-api.version": "2", "ünïcode": 1, "context": "shop", "interface": "web", "promptness": "high",
            "textile": "wool", "imaginary": 1, "audience": "all", "profile": "plain"}),
        {"q": FOX, "42": True, "": "empty", "x-api.version": "2", "ünïcode": 1, "context": "shop", "interface": "web",
            "promptness": "high", "textile": "wool", "imaginary": 1, "audience": "all", "profile": "plain"},
    ),
    "http, secrets of the sample in URLs": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"prompt": "sample", "webhook": S + "hook",
            "callback_url": S + "cb", "dataset": S + "d.zip", "mirror": "s3://samples/x"}),
        {"prompt": FOX},
    ),
    "http, documents": Config(
        flat("http-agent-tool", url="https://api.example/ocr", example_input={"document": S + "d.pdf", "lang": "en"}),
        {"document": PDF, "lang": "en", "prompt": "read this"},
        {"prompt": "read this", "document_url": PDF},
    ),
    "http, many kinds at once": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"instruction": "sample", "image": "a.png",
            "audio": "a.mp3", "video": "a.mp4", "file": "a.pdf", "quality": 3}),
        {"instruction": FOX, "image": PNG, "audio": MP3, "video": MP4, "file": PDF, "quality": 3},
        files(PDF, MP4, MP3, PNG),
    ),
    "http, closed schema": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"prompt": "sample", "n": 1, "old": True}),
        {"prompt": FOX, "n": 1},
        schema={**obj(["prompt"], prompt=TEXT, n=INT), "additionalProperties": False},
    ),
    "http, an example outside its own schema": Config(
        flat("http-agent-tool", url="https://api.example/v1", example_input={"prompt": "sample", "size": "9:9",
            "n": 99}),
        {"prompt": FOX, "size": "9:9", "n": 99},
        schema=obj(["prompt"], prompt=TEXT, size=enum("1:1"), n={**INT, "maximum": 4}),
    ),
    "echo": Config(flat("echo-agent-tool"), {"prompt": FOX}),
}  # fmt: skip
