"""日本語 (Japanese)."""

TEXTS = {
  'title': 'パイロット：{question}',
  'unnamed': 'このデータで役に立つか',
  'owner': '決定者：{owner}。',
  'origin': 'データ：{data}。報告日：{day}。',
  'worth': (
    '本番でも最後の段階と同じ成績なら、一年の純効果は{middle} {unit}'
    '（{low}～{high}）です。'
  ),
  'settle': '結果がこのままなら、約{times}倍のデータで判断できます。',
  'span': '{low}～{high}',
  'verdict': '判定：{verdict}',
  'GO': '採用可（GO）',
  'NO-GO': '採用不可（NO-GO）',
  'MORE DATA': 'データ不足（MORE DATA）',
  'of stage': '{stage}：{verdict}',
  'not run': '未実行',
  'reason GO': (
    'すべての段階がすべての基準を満たし、区間にも疑いが残りません。下記の本番導入'
    'の手順を始められます。'
  ),
  'reason NO-GO': (
    '段階「{stage}」で、うまくいかないことがわかりました。{gate}：結果は{value}、'
    '必要な値は{threshold}です。'
  ),
  'reason MORE DATA': (
    '段階「{stage}」はまだ判断できません。{gate}：結果は{value}、必要な値は'
    '{threshold}です。現在のデータでは偶然の可能性があります。'
  ),
  'reason unknown': (
    '段階「{stage}」は判断できません。{gate}：値がわかりません。必要な値は'
    '{threshold}です。'
  ),
  'reason unfinished': (
    'これまでの段階はすべて合格です。段階「{stage}」がまだ実行されていないため、'
    '全体の判定はありません。'
  ),
  'data': 'データ',
  'module': 'モジュール',
  'composition': '組み合わせ',
  'full': '実規模',
  'shadow': 'シャドー運転',
  'about data': (
    '量は十分か、欠けていないか、テスト用のデータが学習用に紛れていないか。'
  ),
  'about module': (
    'モデルの各階層を単独で小さく学習させ、記憶のないモデルが知らないことを学べるか'
    'を調べます。'
  ),
  'about composition': (
    '階層を組み合わせると、単純なモデルより良く、同じ計算量の平坦なモデルに劣らない'
    'か。'
  ),
  'about full': (
    '実規模のモデルを見たことのない行で試します。事象を見つけるか、誤報はどれくらい'
    'か、自信の度合いは正しいか。'
  ),
  'about shadow': (
    '最後の行を本番と同じ順序で再生します。どのスコアも過去だけを見ます。'
  ),
  'gates': '基準',
  'stage': '段階',
  'criterion': '基準',
  'threshold': '必要な値',
  'found': '結果',
  'interval': '95%区間',
  'decision': '判定',
  'least': '{x}以上',
  'most': '{x}以下',
  'nothing': '不明',
  'level': '{name}（階層{level}）',
  'gate least_windows': '学習に使える独立した窓の数',
  'gate most_missing': '欠測値の割合',
  'gate most_leak': '学習用データにも現れるテスト用データの割合',
  'gate most_drift': '平均の変動（標準偏差単位）',
  'gate least_incidents': 'テストに使える事象の数',
  'gate module_bits': '記憶のないモデルに対して節約した値あたりのビット数',
  'gate composition_bits': (
    '最良の単純なモデルに対して節約した値あたりのビット数'
  ),
  'gate flat_bits': '平坦なモデルに対して節約した値あたりのビット数',
  'gate found': '見つかった事象の割合',
  'gate weekly_false_alarms': '週あたりの誤報',
  'gate most_z2': 'モデルの予想に対する二乗誤差の比',
  'gate shadow_found': 'シャドー運転で見つかった事象の割合',
  'gate shadow_weekly_false_alarms': 'シャドー運転での週あたりの誤報',
  'gate most_delay': '事象から警報までの行数',
  'gate most_milliseconds': '一行の採点にかかるミリ秒',
  'changed': (
    '基準「{gate}」は段階の実行後に変更されました（当時{old}、現在{new}）。判定は'
    '当時の基準によります。'
  ),
  'facts': 'わかったこと',
  'fact rows': '行数',
  'fact channels': 'チャネル数',
  'fact missing': '欠測値の割合',
  'fact constant': '一定のチャネル',
  'fact incidents': '見つけるべき事象',
  'fact anomalous': '事象に含まれる行の割合',
  'fact explained': '線形モデルが説明する分散の割合',
  'fact histogram': '値あたりのビット数：記憶のないモデル',
  'fact bits_{i}': '値あたりのビット数：階層{i}のみ',
  'fact spread_{i}': '乱数の種による標準偏差：階層{i}',
  'fact enough': 'これ以上増やしても効果が小さい行数',
  'fact together': '値あたりのビット数：全階層',
  'fact flat': '値あたりのビット数：同じ計算量の平坦なモデル',
  'fact last_value': '値あたりのビット数：前の行と同じ',
  'fact linear': '値あたりのビット数：線形自己回帰',
  'fact polynomial': '値あたりのビット数：多項式',
  'fact spread': '乱数の種による標準偏差',
  'fact incidents_found': '見つかった事象',
  'fact false_alarms': '誤報',
  'fact weeks': '正常運転の週数',
  'fact threshold': '警報となるスコア',
  'fact steps': '学習のステップ数',
  'fact memory_gb': '最大メモリ使用量（GB）',
  'picture data': 'データ。灰色の部分から学習します。',
  'picture module': (
    '学習曲線：学習した行数に対する、未使用の行での値あたりのビット数。'
  ),
  'picture drawn': (
    '上：実データの窓。下：モデルが生成した窓。似ているほど良いモデルです。'
  ),
  'picture alarms': (
    'データとその下にスコア。破線：しきい値。赤：警報。緑：事象。'
  ),
  'picture pit': '較正：予測分布のどこに値が入るか。平らなら正しい。',
  'picture worst': '最も予想外だった部分。',
  'roi': '投資効果',
  'roi missing': (
    '計算していません。設定ファイルに費用を記入し、段階「{stage}」まで実行してくだ'
    'さい。'
  ),
  'roi formula': (
    '一年の効果＝事象の数×見つかる割合×警報で防げる費用の割合×事象の費用−週あたり'
    'の誤報×52×誤報の費用−保守時間×作業一時間−機器時間×機器一時間。初年度は導入時'
    '間の費用が加わります。低と高は、両方の区間の悪い端と良い端です。'
  ),
  'low': '低',
  'middle': '中',
  'high': '高',
  'roi found': '見つかる事象の割合',
  'roi false_alarms': '週あたりの誤報',
  'roi saved': '年間の節約',
  'roi alarms': '年間の誤報の費用',
  'roi upkeep': '年間の保守と機器の費用',
  'roi setup': '導入費用（一回）',
  'roi yearly': '一年の純効果',
  'roi first_year': '初年度の純効果',
  'roi months': '回収までの月数',
  'never': '回収できない',
  'break even': '事象の{share}以上が見つかれば採算が合います。',
  'no break even': 'すべての事象が見つかっても採算が合いません。',
  'sensitivity': (
    '何に左右されるか：各入力が20%大きいときの一年の効果の変化（割合は'
    '100%まで）'
  ),
  'cost incident': '事象の費用',
  'cost incidents_per_year': '年間の事象の数',
  'cost preventable': '警報で防げる費用の割合',
  'cost false_alarm': '誤報の費用',
  'cost hour_of_work': '作業一時間',
  'cost setup_hours': '導入時間',
  'cost upkeep_hours': '保守時間',
  'cost hour_of_hardware': '機器一時間',
  'cost hardware_hours': '機器時間',
  'cost found': '見つかる事象の割合',
  'cost weekly': '週あたりの誤報',
  'price': 'パイロットの費用',
  'spent': 'これまでにこの機械で{minutes}分かかりました。',
  'next price': '次の段階「{stage}」の学習には約{minutes}分かかる見込みです。',
  'risks': 'リスクと限界',
  'risk 0': (
    '基準は、これらの行で成り立ったことだけを示します。起きなかったことは試されて'
    'いません。'
  ),
  'risk 1': (
    '事象とはラベルのあるものです。記録されなかった故障は誤報に数えられます。'
  ),
  'risk 2': (
    '区間は窓の長さの部分を独立とみなします。ゆっくりした変化があると狭すぎます。'
  ),
  'risk 3': '機械やセンサーを変えたら、学習し直す必要があります。',
  'risk 4': ('警報は普段と違うことを知らせますが、原因も対処も教えません。'),
  'production': '本番導入と切り戻し',
  'step 0': (
    '数週間、誰も対応しない形で並行して動かし、上のシャドー運転と比べます。'
  ),
  'step 1': (
    '誰が警報を受け、何をし、正しかったかどうかをどこに記録するかを決めます。'
  ),
  'step 2': (
    'しきい値を超える行の割合を監視します。二倍になったら何かが変わっています。'
  ),
  'step 3': ('定期的に学習し直し、上の基準を満たすモデルだけを公開します。'),
  'step 4': (
    '切り戻すには、前のモデルのフォルダーに戻します。必要なものはすべて入っていま'
    'す。それまで従来の警報は止めないでください。'
  ),
  'glossary': '用語',
  'term GO': '採用可：区間全体が基準を満たす。',
  'term NO-GO': '採用不可：区間のどこも基準を満たさない。',
  'term MORE DATA': 'データ不足：区間が基準をまたぐか、わかることが少ない。',
  'term bits': ('値あたりのビット数：モデルがどれだけ驚くか。少ないほど良い。'),
  'term interval': (
    '95%区間：このような区間が百あれば、約95個が真の値を含みます。'
  ),
  'term level': ('階層：モデルの部分。階層0は窓全体を、階層1は数行を見ます。'),
  'term window': '窓：モデルが一度に見る行。',
  'term score': 'スコア：行がどれだけ普段と違うか（数行の平均）。',
  'term seed': '乱数の種：学習の出発点となる偶然。',
  'settings': (
    '設定ファイルのハッシュは{hash}です。段階「{stage}」は{old}で実行されました。'
  ),
  'settings same': '設定ファイルのハッシュ：{hash}',
  'fact gradient_{i}': '階層{i}の勾配：ノルムの中央値',
  'fact gradient_spread_{i}': (
    '階層{i}の勾配：種による標準偏差（ノルムに対する割合）'
  ),
  'fact gradient_peak_{i}': '階層{i}の勾配：中央値に対する最大値の比',
  'fact worth_0': '階層0から階層1への情報がないと増える値あたりのビット数',
  'fact worth_1': '階層1から値への情報がないと増える値あたりのビット数',
  'picture gradients': (
    '各ステップの勾配のノルム。上：階層0、下：階層1、線は乱数の種ごと。線が重なり'
    '突出がなければ、学習は安定しています。'
  ),
  # 画像用：末尾が @images の項目は、それのない項目の代わりになる。
  'about data@images': (
    '量は十分か、読めるか、テスト用の画像が学習用に紛れていないか。'
  ),
  'about full@images': (
    '実規模のモデルを見たことのない画像で試します。課題を果たすか、丸暗記以上の'
    'ことを知っているか。'
  ),
  'about shadow@images': (
    'どの段階でも見ていない画像を、本番と同じ順序で一枚ずつ再生します。'
  ),
  'gate least_images': '学習に使える画像の数',
  'gate most_unreadable': '使えないファイルの割合',
  'gate most_copies': '学習用画像の複製であるテスト用画像の割合',
  'gate least_class': '最も小さいクラスの画像の数',
  'gate most_shift': 'テスト用画像の明るさのずれ（標準偏差単位）',
  'gate least_judged': 'テストに使える画像の数',
  'gate least_anomalies': 'テストに使える異常画像の数',
  'gate most_gap': '未知の画像で増える値あたりのビット数',
  'gate distance': '実画像の距離に対する生成画像の距離の比',
  'gate most_strange': (
    'どの実画像にも似ない生成画像の割合（実画像での割合との差）'
  ),
  'gate most_missed': (
    'どの生成画像にも似ない実画像の割合（同数の実画像と比べた割合との差）'
  ),
  'gate drawn_copies': '学習用画像の複製である生成画像の割合',
  'gate completion': '最も近い画像に対して減った誤差の割合',
  'gate shadow_bits': 'シャドー運転で増える値あたりのビット数',
  'gate shadow_completion': 'シャドー運転で減った誤差の割合',
  'gate found@images': '見つかった異常の割合',
  'gate shadow_found@images': 'シャドー運転で見つかった異常の割合',
  'gate most_milliseconds@images': '一枚ずつ処理するときの一枚のミリ秒',
  'fact images': '学習用画像の数',
  'fact judged': '判定用画像の数',
  'fact replayed': 'シャドー運転の画像の数',
  'fact anomalies': '異常画像の数',
  'fact classes': 'クラスの数',
  'fact smallest_class': '最も小さいクラスの画像の数',
  'fact largest_class': '最も大きいクラスの画像の数',
  'fact uniform': '値あたりのビット数：すべての値が同じ確率の場合',
  'fact forest': '値あたりのビット数：ランダムフォレスト',
  'fact enough@images': 'これ以上増やしても効果が小さい画像の数',
  'fact incidents@images': '異常画像の数',
  'fact incidents_found@images': '見つかった異常画像の数',
  'fact weeks@images': '同じ数の正常画像に相当する週数',
  'fact threshold@images': '警報となる値あたりのビット数',
  'fact held_bits': '値あたりのビット数：判定用画像',
  'fact train_bits': '値あたりのビット数：学習用画像',
  'fact drawn_bits': '値あたりのビット数：モデルが生成した画像',
  'fact strange': 'どの学習用画像にも似ない生成画像の割合',
  'fact strange_held': 'どの学習用画像にも似ない判定用画像の割合',
  'fact missed': 'どの生成画像にも似ない判定用画像の割合',
  'fact missed_train': '同数のどの学習用画像にも似ない判定用画像の割合',
  'fact shadow_bits': '値あたりのビット数：シャドー運転の画像',
  'fact gain': '減った誤差の割合',
  'picture train': '学習用画像の一部。',
  'picture classes': '各クラスの画像の数。',
  'picture module@images': (
    '学習曲線：学習した画像の数に対する、判定用画像での値あたりのビット数。'
  ),
  'picture images': 'モデルが生成した画像。',
  'picture completed': '元の画像と、下半分を生成した画像を交互に並べたもの。',
  'picture bits': (
    '値あたりのビット数の度数。灰：学習用、青：判定用、黒：生成、赤：異常。灰と青'
    'が離れていれば、丸暗記しています。'
  ),
  'picture worst_images': '最も予想外だった判定用画像。',
  'picture replay': '順に並べた画像の値あたりのビット数。破線はしきい値。',
  'roi none': (
    '計算していません。投資効果は事象から求めますが、この課題は事象を探すものでは'
    'ありません。生成した画像の価値は、使う人が判断してください。'
  ),
  'risk 0@images': (
    '基準は、これらの画像で成り立ったことだけを示します。ほかの画像は試されていま'
    'せん。'
  ),
  'risk 1@images': (
    '画像は小さく縮小されています。大きな画像でしか見えないものは判定していません。'
  ),
  'risk 2@images': (
    '区間は画像を互いに独立とみなします。同じ物を写した写真があると狭すぎます。'
  ),
  'risk 3@images': ('カメラ、照明、製品を変えたら、学習し直す必要があります。'),
  'risk 4@images': (
    '生成画像の距離は簡単な特徴によるもので、公表値とは比べられません。画像そのも'
    'のも見てください。'
  ),
  'step 0@images': (
    '数週間、誰も頼らない形で現在の方法と並行して動かし、上のシャドー運転と比べま'
    'す。'
  ),
  'step 1@images': (
    '誰がモデルの出力を見て、正しかったかどうかをどこに記録するかを決めます。'
  ),
  'step 2@images': (
    '新しい画像のビット数を監視します。増えたら画像が変わっています。'
  ),
  'step 4@images': (
    '切り戻すには、前のモデルのフォルダーに戻します。必要なものはすべて入っていま'
    'す。それまで現在の方法は止めないでください。'
  ),
  'term level@images': (
    '階層：モデルの部分。階層0は画像全体を、階層1は数画素の区画を見ます。'
  ),
  'term window@images': '値：画素（またはその一色）の明るさ。',
  'term score@images': (
    '距離：生成画像が全体として実画像からどれだけ離れているか（主成分のフレシェ距'
    '離）。三番目に近い画像までの距離より近い画像どうしを、似ているとみなします。'
  ),
}
