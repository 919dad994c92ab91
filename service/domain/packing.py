"""Content made small before it is sealed, since sealed bytes do not pack: raw DEFLATE, begun with the words that our
own documents are made of, so that a document of a few hundred bytes packs too.

What was packed with these words opens with exactly these words: they are never changed. Other words are another kind.
"""

import zlib
from typing import Final

# What comes last is the cheapest to point at. Under 8 KiB: the window of the small packer.
_SCHEMA: Final = """"format":"uri","pattern":"^[^/\\s]+$","title":"Input","anyOf":[{"type":"null"},"oneOf":[{"allOf":[{\
"examples":["const":"exclusiveMinimum":0,"exclusiveMaximum":"multipleOf":"minItems":"maxItems":"maxLength":\
"patternProperties":{"items":{"type":"object","description":"Sent as the user's message."},"temperature":{"type":\
"number","minimum":0,"maximum":2},"top_p":{"type":"number","minimum":0,"maximum":1},"max_tokens":{"type":"integer",\
"minimum":1},"negative_prompt":"aspect_ratio":"1:1","enum":["16:9","21:9","3:2","2:3","4:5","5:4","3:4","4:3","9:16",\
"9:21"],"output_format":"webp","enum":["webp","jpg","png"],"output_quality":80,"go_fast":true,"megapixels":"1",\
"num_inference_steps":4,"guidance_scale":7.5,"width":1024,"height":1024,"seed":null,"disable_safety_checker":false,\
"x-order":0,"description":"Random seed. Set for reproducible generation","default":false},{"type":"boolean","default":\
{"type":"array","items":{"type":"string"}},{"type":"integer","description":"Number of outputs to generate",\
"minimum":1,"maximum":4,"default":1},"""
_ASKED: Final = """"user_email":"agent_email":"message_type":"log_id":"selected_llm":"conversation":[{"role":"user",\
"content":"},{"role":"assistant","content":"chat_history":"document_context":"document_url":"attachments":[{"url":\
"https://","media_type":"image/png","name":"replicate-agent-tool":{"data":{"name":"latest_version":"deployment":\
"operation_type":"openai-agent-tool":{"data":{"model":"gpt-4o-mini","system":"You are "http-agent-tool":{"data":{"url":\
"http://127.0.0.1:method":"POST","headers":{"Authorization":"[sealed]"},"timeout_seconds":300,"estimated_cost_usd":\
"echo-agent-tool":{"data":{"latency_seconds":"safety_flags":["pii"],"flag_words":{"""
_ANSWER: Final = """{"reason":"edits":{"payload":{"response":{"output":["https://replicate.delivery/","/hitl/files/\
{"id":"object":"chat.completion","created":"choices":[{"index":0,"message":{"role":"assistant","content":\
"finish_reason":"stop"}],"usage":{"prompt_tokens":"completion_tokens":"total_tokens":{"status":"succeeded","metrics":\
{"predict_time":"urls":{"get":"version":"created_at":"started_at":"completed_at":"logs":"error":{"code":"message":\
"issues":[{"field":"issue":"is required","severity":"error","suggested_fix":"Give prompt a value.","auto_fixable":\
false}],"problem":null,"raw":"quality":"""
_FORM: Final = """"audio","video","file","What is the ?","Which values for "Which image should be used?","yes or no?",\
"Allowed: at least 1, at most 4."One of: "minimum":"type":"enum","category":"hybrid","editors":{"rounds":1,"built":\
"previous":"attachment","conversation","schema_default","edited","message":"Is the information for this run complete?",\
"Is this response good to use?","The provider refused the payload: what shall be changed?","The call was sent and \
never answered: did it happen?","round":{"asked":1,"most":3},\
"findings":[{"flag":"pii","detector":"email","field":"prompt"}],\
"revision_diff":[{"op":"add","path":"/{"op":"remove","path":"/validation_issues":["current_value":null,\
"collection":true,"category":"setting","required":false,"current_value":,"default":null,"prompt":\
"Which  should be used?","collection":false,"hint":"","allowed":["","origin":"example","edited_by":null},{"name":\
"num_outputs","label":"Num outputs","type":"integer","category":"setting","required":false,"current_value":1,"default":\
null,"prompt":"What num outputs should be used?","collection":false,"hint":"","allowed":null,"origin":"example",\
"edited_by":null},{"name":"label":"type":"string","category":"content","required":true,"current_value":"","default":\
null,"prompt":"What should be made?","collection":false,"hint":"Allowed: at least 1 characters.","allowed":null,\
"origin":"prompt","edited_by":null},"""
_SHAPES: Final = """{"output":{"prompt":"","raw_response":{"{"result":{"response":{"prompt":"\
{"run_input":{"prompt":"","user_id":"session_id":"agent_tool_config":{"http-agent-tool":{"data":{"example_input":\
{"prompt":"","num_outputs":1}}}}},"tool_config":{"url":"schema":"example_input":{"prompt":"","num_outputs":1}}}\
{"description":{"schema":{"type":"object","properties":{"prompt":{"type":"string","minLength":1},"num_outputs":{"type":\
"integer"}},"required":["prompt"],"additionalProperties":true},"baseline":{"prompt":"","num_outputs":1},"origins":\
{"prompt":"prompt","num_outputs":"example"},"confidence":1.0,"flag_words":{},"missing":[]},"payload":{"prompt":"\
{"message":"May this payload be sent to the provider?","context":{"payload":{"prompt":"","num_outputs":1},\
"payload_sha256":"0123456789abcdef","schema":{"type":"object","properties":{"prompt":{"type":"string","minLength":1}},\
"required":["prompt"],"additionalProperties":true},"form":{"title":"May this payload be sent to the provider?",\
"fields":[{"name":"prompt","label":"Prompt","type":"string","category":"content","required":true,"current_value":"\
"diff":[{"op":"replace","path":"/prompt","from":"","value":""}],"revision_diff":null,"validation_issues":[],\
"findings":[],"confidence":1.0,"estimated_cost_usd":null,"round":null,"response":null,"output":null},"schema":{"""
WORDS: Final = "".join((_SCHEMA, _ASKED, _ANSWER, _FORM, _SHAPES)).encode()

_SMALL: Final = 8192  # bytes that the small packer's window holds: it is set up in a tenth of the large one's time
_WIDEST: Final = -zlib.MAX_WBITS  # negative: DEFLATE without zlib's header and checksum; the seal has a better one
_BEGUN: Final = zlib.compressobj(3, zlib.DEFLATED, -13, 6, zlib.Z_DEFAULT_STRATEGY, WORDS)


def packed(raw: bytes) -> bytes:
    if len(raw) <= _SMALL:
        packer = _BEGUN.copy()
    else:
        packer = zlib.compressobj(1, zlib.DEFLATED, _WIDEST, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, WORDS)
    return packer.compress(raw) + packer.flush()


def unpacked(small: bytes) -> bytes:
    unpacker = zlib.decompressobj(_WIDEST, WORDS)
    return unpacker.decompress(small) + unpacker.flush()
