"""Texts that exported models are checked on."""

# (question, answer) pairs
PROMPTS = (
    ("你好，请介绍一下你自己。", "你好！我是一个人工智能助手，可以回答问题、写作和翻译，很高兴为你服务。"),
    ("中国的首都是哪里？", "中国的首都是北京。"),
    ("请写一首关于春天的短诗。", "春风吹绿柳，细雨润桃花。\n燕子归来早，炊烟到晚霞。"),
    ("What is the capital of France?", "The capital of France is Paris, a city on the river Seine."),
    (
        "Explain in one sentence why the sky is blue.",
        "Air scatters the short waves of sunlight, which are blue, more than the long ones, which are red.",
    ),
)
