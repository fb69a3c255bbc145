"""Write the sample sets that ship with the project.

    python scripts/make_samples.py                     # data/spo_0.json, data/spo_1.json, data/samples/*.json
    python scripts/make_samples.py --output_dir /tmp/x

Tasks in Chinese, composed from the word lists below; the same seed gives the same bytes.

- spo_0 / spo_1: fault reports, from which triples 主体_关系_客体 of four relations are extracted. Pairs of words are
  divided first: no triple of spo_1 (held out) occurs in spo_0, though all of its words do. The task is to find where
  a subject and its object are in a sentence, not to remember pairs of them.
- reviews: which kind of goods or service a customer's review is about. Pairs of item and opinion are divided likewise.
- chats: conversations of several turns in a workshop, as from and value; later questions need what was said before.
- tool_calls: an assistant with two tools, as role and content: no call, one or two.
  Every other record with a call ends with it, so that calls can be scored.
"""

import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from errors import run_program  # noqa: E402
from flags import flag  # noqa: E402
from options.parser import Program, read_command_line, section  # noqa: E402


@dataclass(frozen=True)
class SampleOptions:
    """The output directory."""

    TITLE: ClassVar[str] = "output"

    output_dir: str = flag(
        str(Path(__file__).resolve().parent.parent / "data"),
        help="Directory to write to.",
        zh="写到哪个目录。",
        metavar="DIR",
    )


PROGRAM = Program(name="make_samples.py", description=__doc__.split("\n")[0], sections=(SampleOptions,))
SEED = 20240601
NUM_TRAIN, NUM_HELD_OUT = 5000, 200
NUM_REVIEWS, NUM_REVIEWS_HELD_OUT = 800, 160
NUM_CHATS = NUM_TOOL_CALLS = 40
HELD_OUT_SHARE = 0.15  # fraction of all pairs of words

SPO_INSTRUCTION = "从检修文本中抽取部件故障、性能故障、组成和检测工具四种关系的三元组，用_连接，每行一个。文本："
REVIEW_INSTRUCTION = '下面的顾客评论说的是哪一类商品或服务？用列表作答，例如["类别"]。评论：'

# Parts by kind; a fault goes with the parts of its kind.
PARTS = {
    "转动件": "轴承 叶轮 转子 皮带轮 飞轮 传动齿轮 主轴 联轴器 曲轴 凸轮轴 风扇叶片 滚筒 链轮 离合器片 偏心轮",
    "电气件": "接触器 继电器 保险丝 点火线圈 电磁阀 温度传感器 线束插头 充电模块 霍尔元件 限位开关 变频器 蓄电池 电刷",
    "流体件": "水泵 油泵 散热器 进油管 滤清器 喷油嘴 油封 储液罐 节流阀 冷凝器 单向阀 回水管 空压机 油缸 密封圈",
    "结构件": "支架 外壳 固定螺栓 法兰 盖板 导轨 底座 卡箍 防护罩 悬臂 拉杆 弹簧座 机箱门 地脚螺丝 吊钩",
}
FAULTS = {
    "转动件": "磨损 卡滞 异响 断裂 抖动 发热 偏磨 打滑 缺油 间隙过大",
    "电气件": "烧坏 短路 断路 接触不良 老化 受潮 无输出 误动作 触点粘连 绝缘破损",
    "流体件": "渗漏 堵塞 破裂 腐蚀 卡死 进气 积垢 爆管 滴油 压不紧",
    "结构件": "松动 开裂 变形 锈蚀 脱落 倾斜 掉漆 错位 缺失 断裂",
}
PLACES = "左侧 右侧 前部 后部 一号 二号 三号 上部 下部 备用"
WHOLES = {
    "转动件": "发动机 变速箱 起动机 电梯曳引机 数控机床 输送机 发电机组 风力机组 洗衣机 叉车 起重机 注塑机",
    "电气件": "发动机 空调机组 电梯曳引机 数控机床 发电机组 变压器 洗衣机 叉车 注塑机 充电桩",
    "流体件": "发动机 冷却系统 液压系统 空调机组 燃油系统 制动系统 注塑机 变压器 洗衣机 叉车",
    "结构件": "数控机床 输送机 变压器 风力机组 起重机 叉车 电梯曳引机 洗衣机 充电桩 制动系统",
}
TOOLS = {
    "转动件": "听诊器 百分表 测振仪 游标卡尺 塞尺 转速计 红外测温仪 内窥镜",
    "电气件": "万用表 示波器 兆欧表 钳形电流表 诊断仪 红外测温仪",
    "流体件": "压力表 检漏仪 内窥镜 听诊器 红外测温仪 诊断仪",
    "结构件": "游标卡尺 塞尺 百分表 测振仪 内窥镜",
}
MEASURED = {  # quantities and the tools that measure them
    "水温 排气温度 出风温度": "红外测温仪 诊断仪 点温计",
    "油压 泵口压力 真空度 液位": "压力表 诊断仪 真空表",
    "怠速 转速 车速": "转速计 诊断仪 示波器",
    "输出电压 充电电流 功率": "万用表 示波器 钳形电流表",
    "噪声 制动力 加工精度 流量 油耗": "测试台 诊断仪 记录仪",
}
STATES = "偏高 偏低 不稳 下降 波动大 超标 上不去 时高时低 突然归零 不足 异常升高 达不到标准"

OPENINGS = [
    "",
    "故障现象：",
    "检修记录：",
    "用户反映，",
    "现场检查时，",
    "{n}号设备送修，",
    "设备运行{n}00小时后，",
    "第{n}号报告：",
    "夜班巡检中，",
    "雨天过后，",
]
ENDINGS = [
    "",
    "",
    "，已停机。",
    "，等待配件。",
    "，更换后恢复正常。",
    "，维修人员正在处理。",
    "，需要尽快安排检修。",
    "，处理后试车正常。",
]
NO_FAULT = ["{p}正常", "检查{p}没有发现问题", "{p}状态良好", "{p}刚刚更换过"]

# A clause and its triples, both in the words' order: p, q parts; f, g faults; w whole; m, s quantity and state; t tool.
CLAUSES = [
    ("{p}{f}", ["p 部件故障 f"]),
    ("发现{p}{f}", ["p 部件故障 f"]),
    ("{p}出现{f}现象", ["p 部件故障 f"]),
    ("原因是{p}{f}", ["p 部件故障 f"]),
    ("{p}{f}并且{g}", ["p 部件故障 f", "p 部件故障 g"]),
    ("{p}和{q}都已{f}", ["p 部件故障 f", "q 部件故障 f"]),
    ("{m}{s}", ["m 性能故障 s"]),
    ("仪表显示{m}{s}", ["m 性能故障 s"]),
    ("{m}一直{s}", ["m 性能故障 s"]),
    ("导致{m}{s}", ["m 性能故障 s"]),
    ("{w}由{p}、{q}等组成", ["p 组成 w", "q 组成 w"]),
    ("{p}装在{w}上", ["p 组成 w"]),
    ("{w}的{p}{f}", ["p 组成 w", "p 部件故障 f"]),
    ("拆下{w}中的{p}，看到{f}", ["p 组成 w", "p 部件故障 f"]),
    ("用{t}检查{p}", ["t 检测工具 p"]),
    ("用{t}测量{m}", ["t 检测工具 m"]),
    ("用{t}测得{m}{s}", ["t 检测工具 m", "m 性能故障 s"]),
    ("经{t}检测，{p}{f}", ["t 检测工具 p", "p 部件故障 f"]),
]

LATER = ("原因是", "导致")  # clauses that follow another one

REVIEWS = {  # things, good opinions, bad opinions
    "水果": (
        "苹果 橙子 车厘子 葡萄 草莓 芒果 猕猴桃 香蕉",
        "很甜 水分足 个头大 皮薄好剥 熟得刚好",
        "有几个烂了 不太新鲜 酸得厉害",
    ),
    "酒店": (
        "房间 大床房 前台 早餐厅 浴室 地毯 空调房 大堂",
        "很干净 让人舒服 布置得温馨",
        "太旧了 味道有点重 比照片上小 没人打扫 灯光太暗",
    ),
    "书籍": (
        "小说 教材 绘本 散文集 漫画 词典 传记 食谱",
        "印刷清楚 内容充实 写得好 孩子爱看",
        "纸张太薄 缺了几页 错别字多 装订不牢",
    ),
    "手机": (
        "手机屏幕 手机电池 摄像头 充电器 充电宝 指纹锁 耳机孔 手机壳",
        "做工好 很耐用 用着顺手 手感好",
        "发热严重 老是失灵 没用几天就坏 有划痕",
    ),
    "服装": (
        "外套 牛仔裤 毛衣 连衣裙 衬衫 运动鞋 羽绒服 袜子",
        "面料柔软 版型好看 穿着暖和 颜色正",
        "尺码偏小 掉色厉害 线头很多 起球了",
    ),
    "餐饮": (
        "牛肉面 炒饭 火锅 烤鸭 汉堡 麻辣烫 饺子 奶茶",
        "味道很香 分量足 很新鲜 回头还点",
        "太咸了 送到时凉了 吃完肚子疼 料给得少",
    ),
    "洗护": (
        "洗发水 沐浴露 面霜 牙膏 护手霜 洗面奶 香皂 防晒霜",
        "质地细腻 很温和 香味淡 不刺激 用量省",
        "用了过敏 越用越干 瓶口漏了",
    ),
    "家电": (
        "冰箱 热水器 微波炉 电饭煲 吸尘器 加湿器 电风扇 油烟机",
        "噪音小 安装很快 省电 操作简单",
        "特别费电 噪音太大 外壳有凹痕 一插电就跳闸",
    ),
}
REVIEW_PATTERNS = [
    "{i}{o}。",
    "{i}{o}，总体{v}。",
    "给家里人买的，{i}{o}。",
    "{v}，{i}{o}。",
    "第{n}次下单了，{i}{o}。",
    "朋友推荐的，结果{i}{o}，{v}。",
    "{i}{o}，{j}{u}。",
    "等了{n}天，{i}{o}，另外{j}{u}。",
]
VERDICTS = {"good": "满意 值得推荐 物有所值 还会再来", "bad": "失望 不推荐 不值这个价 让人后悔"}

CHAT_SYSTEM = "你是检修车间的助手，回答要短。"
CHAT_OPENINGS = [  # a question and its answer: w whole, p part, f fault, t the tool to look with
    ("{w}的{p}{f}，怎么办？", "先停机，再用{t}检查{p}。"),
    ("{w}坏了，{p}{f}。", "请用{t}检查{p}，必要时更换。"),
    ("我们的{w}又不行了，拆开看是{p}{f}。", "更换{p}，装好后用{t}再测一遍。"),
]
CHAT_LATER = [  # u is another tool
    ("用什么工具？", "{t}。"),
    ("没有{t}，可以用{u}吗？", "可以，先用{u}检查{p}。"),
    ("刚才说的是哪台设备？", "{w}。"),
    ("请写一条检修记录。", "{w}的{p}{f}，已用{t}检查。"),
    ("哪个零件坏了？", "{p}，现象是{f}。"),
    ("谢谢。", "不客气，祝{w}早日修好。"),
]

CALL_SYSTEM = "你是检修车间的助手，可以使用下面的工具。"
CALL_TOOLS = [
    {
        "name": "query_stock",
        "description": "查询备件库存",
        "parameters": {
            "type": "object",
            "properties": {"part": {"type": "string", "description": "备件名称"}},
            "required": ["part"],
        },
    },
    {
        "name": "book_repair",
        "description": "预约检修",
        "parameters": {
            "type": "object",
            "properties": {
                "equipment": {"type": "string", "description": "设备名称"},
                "day": {"type": "string", "description": "星期几"},
                "people": {"type": "integer", "description": "人数"},
            },
            "required": ["equipment", "day"],
        },
    },
]
STOCK_QUESTIONS = ["仓库里还有{p}吗？", "查一下{p}的库存。", "{p}还剩几个？"]
BOOK_QUESTIONS = ["{w}{d}要检修，请预约{n}个人。", "帮我约{d}检修{w}，来{n}个人。"]
NO_CALL = [
    ("{p}装在哪里？", "装在{w}上。"),
    ("{p}{f}用什么检查？", "用{t}检查。"),
    ("你能做什么？我管{w}。", "我可以查备件库存，也可以给{w}预约检修。"),
]
DAYS = "周一 周二 周三 周四 周五"


def divide(pairs: list[tuple], rng: random.Random) -> tuple[list[tuple], list[tuple]]:
    """Training and held-out pairs; every word keeps at least one training pair in its position."""
    pairs = list(pairs)
    rng.shuffle(pairs)
    left, right = defaultdict(int), defaultdict(int)
    for a, b in pairs:
        left[a] += 1
        right[b] += 1
    train, held_out = [], []
    for a, b in pairs:
        if len(held_out) < HELD_OUT_SHARE * len(pairs) and left[a] > 2 and right[b] > 2:
            held_out.append((a, b))
            left[a] -= 1
            right[b] -= 1
        else:
            train.append((a, b))
    return train, held_out


def divide_words(rng: random.Random) -> tuple[dict, dict]:
    """For training and held-out: {(relation, kind of subject): pairs}."""
    measured = [(m, t) for names, tools in MEASURED.items() for m in names.split() for t in tools.split()]
    pairs = {
        "p 部件故障 f": [(p, f) for kind in PARTS for p in PARTS[kind].split() for f in FAULTS[kind].split()],
        "m 性能故障 s": [(m, s) for names in MEASURED for m in names.split() for s in STATES.split()],
        "p 组成 w": [(p, w) for kind in PARTS for p in PARTS[kind].split() for w in WHOLES[kind].split()],
        "t 检测工具 p": [(t, p) for kind in PARTS for t in TOOLS[kind].split() for p in PARTS[kind].split()],
        "t 检测工具 m": [(t, m) for m, t in measured],
    }
    divided = {name: divide(pairs_of_relation, rng) for name, pairs_of_relation in pairs.items()}
    return {k: v[0] for k, v in divided.items()}, {k: v[1] for k, v in divided.items()}


def fill(triples: list[str], pairs: dict, rng: random.Random) -> dict[str, str]:
    """Words for the letters of a clause, such that all its triples are among `pairs`."""
    while True:
        words = {}
        for triple in triples:
            a, relation, b = triple.split()
            options = pairs[f"{'p' if a == 'q' else a} {relation} {'f' if b == 'g' else b}"]
            options = [(x, y) for x, y in options if words.get(a, x) == x and words.get(b, y) == y]
            taken = {words.get("p"), words.get("f")}
            options = [(x, y) for x, y in options if not (a == "q" and x in taken) and not (b == "g" and y in taken)]
            if not options:
                break
            words[a], words[b] = rng.choice(options)
        else:
            return words


def make_report(pairs: dict, rng: random.Random) -> dict:
    """One record of 1 to 4 triples."""
    wanted = rng.choices([1, 2, 3, 4], [3, 4, 4, 2])[0]
    opening = rng.choice(OPENINGS).format(n=rng.randint(2, 99))
    clauses, lines, used = [], [], set()
    while len(lines) < wanted:
        pattern, triples = rng.choice(CLAUSES)
        if len(lines) + len(triples) > wanted:
            continue
        words = fill(triples, pairs, rng)
        if used & set(words.values()) or (not clauses and pattern.startswith(LATER)):
            continue
        used |= set(words.values())
        shown = {
            letter: rng.choice(PLACES.split()) + word if letter in "pq" and rng.random() < 0.4 else word
            for letter, word in words.items()
        }
        if rng.random() < 0.15:
            part = rng.choice([p for p, _ in pairs["p 部件故障 f"] if p not in used])
            used.add(part)
            clauses.append(rng.choice(NO_FAULT).format(p=part))
        clauses.append(pattern.format(**shown))
        for triple in triples:
            a, relation, b = triple.split()
            lines.append(f"{shown[a]}_{relation}_{shown[b]}")
    text = opening + "，".join(clauses) + rng.choice(ENDINGS)
    text = text if text.endswith("。") else text + "。"
    return {"instruction": SPO_INSTRUCTION, "input": text, "output": "\n".join(lines)}


def make_review(pairs: dict, rng: random.Random) -> dict:
    """One record: a review of one or two sentences on things of one category."""
    category = rng.choice(list(pairs))
    (item, opinion), (other_item, other_opinion) = rng.sample(pairs[category], 2)
    verdict = rng.choice(VERDICTS["good" if opinion in REVIEWS[category][1].split() else "bad"].split())
    text = rng.choice(REVIEW_PATTERNS).format(
        i=item, o=opinion, j=other_item, u=other_opinion, n=rng.randint(2, 9), v=verdict
    )
    return {
        "instruction": REVIEW_INSTRUCTION,
        "input": text,
        "output": json.dumps([category], ensure_ascii=False),
    }


def make_words(rng: random.Random) -> dict[str, object]:
    """Words of one kind for the letters of a conversation."""
    kind = rng.choice(list(PARTS))
    tool, other_tool = rng.sample(TOOLS[kind].split(), 2)
    part, fault, machine = (rng.choice(words[kind].split()) for words in (PARTS, FAULTS, WHOLES))
    return {
        "p": part,
        "f": fault,
        "w": machine,
        "t": tool,
        "u": other_tool,
        "d": rng.choice(DAYS.split()),
        "n": rng.randint(1, 6),
    }


def make_chat(rng: random.Random) -> dict:
    """A conversation of two to four turns."""
    words = make_words(rng)
    turns = [rng.choice(CHAT_OPENINGS), *sorted(rng.sample(CHAT_LATER, rng.randint(1, 3)), key=CHAT_LATER.index)]
    conversation = []
    for question, answer in turns:
        conversation.append({"from": "human", "value": question.format(**words)})
        conversation.append({"from": "gpt", "value": answer.format(**words)})
    return {"conversations": conversation, **({"system": CHAT_SYSTEM} if rng.random() < 0.5 else {})}


def make_call(name: str, arguments: dict, seen: dict) -> list[dict]:
    """The messages of a call and of the tool's result."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": json.dumps(seen, ensure_ascii=False)},
    ]


def make_tool_record(rng: random.Random) -> dict:
    """A conversation with two tools."""
    words = make_words(rng)
    calls = rng.choice(["stock", "book", "both", "none"])
    questions, messages, answers = [], [], []
    if calls in ("stock", "both"):
        count = rng.randint(0, 6)
        questions.append(rng.choice(STOCK_QUESTIONS))
        messages += make_call("query_stock", {"part": words["p"]}, {"count": count})
        answers.append(f"{{p}}还有{count}个。" if count else "{p}没有库存了。")
    if calls in ("book", "both"):
        arguments = {"equipment": words["w"], "day": words["d"], "people": words["n"]}
        time = f"{rng.randint(8, 16)}:00"
        questions.append(rng.choice(BOOK_QUESTIONS))
        messages += make_call("book_repair", arguments, {"booked": True, "time": time})
        answers.append(f"已预约{{d}}{time}检修{{w}}，{{n}}个人。")
    if calls == "none":
        question, answer = rng.choice(NO_CALL)
        questions, answers = [question], [answer]
    asked = {"role": "user", "content": "".join(questions).format(**words)}
    if messages and rng.random() < 0.5:
        messages.pop()  # the call is the answer
    else:
        messages.append({"role": "assistant", "content": "".join(answers).format(**words)})
    return {"messages": [{"role": "system", "content": CALL_SYSTEM}, asked, *messages], "tools": CALL_TOOLS}


def make_different(make, count: int, rng: random.Random) -> list[dict]:
    """`count` distinct conversations."""
    records = {}
    while len(records) < count:
        record = make(rng)
        records[json.dumps(record, ensure_ascii=False)] = record
    return list(records.values())


def make_many(make, pairs: dict, count: int, seen: set[str], rng: random.Random) -> list[dict]:
    """`count` records with inputs that are not in `seen`, which grows."""
    records = []
    while len(records) < count:
        record = make(pairs, rng)
        if record["input"] not in seen:
            seen.add(record["input"])
            records.append(record)
    return records


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(text.encode("utf-8"))
    print(f"{path}: {len(records)} records")


def main() -> None:
    output_dir = Path(section(SampleOptions, read_command_line(PROGRAM)).output_dir)

    rng = random.Random(SEED)
    train, held_out = divide_words(rng)
    seen = set()
    write(output_dir / "spo_0.json", make_many(make_report, train, NUM_TRAIN, seen, rng))
    write(output_dir / "spo_1.json", make_many(make_report, held_out, NUM_HELD_OUT, seen, rng))

    rng = random.Random(SEED + 1)
    divided = {
        category: divide([(i, o) for i in items.split() for o in [*good.split(), *bad.split()]], rng)
        for category, (items, good, bad) in REVIEWS.items()
    }
    train, held_out = ({category: parts[k] for category, parts in divided.items()} for k in (0, 1))
    seen = set()
    write(output_dir / "samples/reviews_train.json", make_many(make_review, train, NUM_REVIEWS, seen, rng))
    write(output_dir / "samples/reviews_test.json", make_many(make_review, held_out, NUM_REVIEWS_HELD_OUT, seen, rng))

    write(output_dir / "samples/chats.json", make_different(make_chat, NUM_CHATS, random.Random(SEED + 2)))
    calls = make_different(make_tool_record, NUM_TOOL_CALLS, random.Random(SEED + 3))
    write(output_dir / "samples/tool_calls.json", calls)


if __name__ == "__main__":
    run_program(main)
